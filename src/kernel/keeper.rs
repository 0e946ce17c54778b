//! The records of the keeper, the small kernel module of scripts/keeper: each CPU's FPU registers and
//! a few others, saved as the dying kernel stopped it.
//!
//! Its layout is its own header's, scripts/keeper/vmrestore_keeper.h; it says its own sizes, and is
//! found by its symbol. Nothing in it is believed unchecked: it lay in the memory of a kernel that
//! died.

use super::cpu_state::{CpuSource, CpuState, CpuThread};
use super::{Kernel, KernelError};

const MODULE: &str = "vmrestore_keeper";
const HEAD: &str = "vmrestore_keeper";
const HEAD_MAGIC: &[u8; 16] = b"VMRESTORE KEEPER";
const RECORD_MAGIC: u64 = 0x4345_524b_5045_4556;
const VERSION: u32 = 1;
/// The head that this reader knows; a later one may be longer.
const HEAD_SIZE: usize = 56;
/// The record that this reader knows.
const RECORD_SIZE: usize = 168;
/// The longest record, without its XSAVE area, and the farthest such area.
const MOST_RECORD: u32 = 4096;
/// XSAVE areas: the legacy area and the header, and more than AMX takes.
const AREA_SIZES: std::ops::RangeInclusive<u32> = 576..=64 << 10;
/// `CONFIG_NR_CPUS` goes up to 8192.
const MOST_CPUS: u32 = 8192;

// `keeper_record.state`
const EMPTY: u32 = 0;
const DONE: u32 = 2;

// `keeper_record.valid`
const HAS_AREA: u32 = 1 << 0;
const HAS_XCR0: u32 = 1 << 1;
const HAS_PKRU: u32 = 1 << 4;
const HAS_TIME: u32 = 1 << 6;
const FPU_IN_MEMORY: u32 = 1 << 16;

/// Offsets in an XSAVE area.
const XSTATE_BV: usize = 512;
const XCOMP_BV: usize = 520;

/// The keeper of a dead kernel.
#[derive(Clone, Debug)]
pub(super) struct Keeper {
    record_size: u32,
    area_offset: u32,
    area_size: u32,
    cpus: u32,
    records: u64,
}

impl Keeper {
    /// The keeper, if it was loaded.
    pub fn find(kernel: &Kernel) -> Result<Option<Keeper>, KernelError> {
        let Some(addr) = place(kernel)? else {
            return Ok(None);
        };
        let mut bytes = [0; HEAD_SIZE];
        kernel.read(addr, &mut bytes)?;
        Keeper::parse(addr, &bytes).map(Some)
    }

    fn parse(addr: u64, bytes: &[u8; HEAD_SIZE]) -> Result<Keeper, KernelError> {
        let damaged = |detail: String| KernelError::Damaged {
            what: "the keeper's head",
            addr,
            detail,
        };
        if &bytes[..16] != HEAD_MAGIC {
            return Err(damaged("it has not its mark".into()));
        }
        let field = |at: usize| u32_at(bytes, at);
        let [
            version,
            head_size,
            record_size,
            area_offset,
            area_size,
            cpus,
        ] = [16, 20, 24, 28, 32, 36].map(field);
        if version != VERSION {
            return Err(KernelError::Unsupported {
                what: format!("version {version} of the keeper ({VERSION} is known)"),
            });
        }
        let fits = head_size as usize >= HEAD_SIZE
            && record_size as usize >= RECORD_SIZE
            && record_size <= MOST_RECORD
            && area_offset >= record_size
            && area_offset <= MOST_RECORD
            && area_offset.is_multiple_of(64)
            && AREA_SIZES.contains(&area_size)
            && (1..=MOST_CPUS).contains(&cpus);
        if !fits {
            return Err(damaged(format!(
                "sizes of head {head_size}, record {record_size}, area {area_size} at {area_offset}, \
                 {cpus} CPUs"
            )));
        }
        Ok(Keeper {
            record_size,
            area_offset,
            area_size,
            cpus,
            records: u64_at(bytes, 48),
        })
    }

    /// What it saved of a CPU; `None` when that CPU did not come by.
    pub fn state(&self, kernel: &Kernel, cpu: u32) -> Result<Option<CpuState>, KernelError> {
        if cpu >= self.cpus {
            return Ok(None);
        }
        let addr = kernel.read_u64(self.records.wrapping_add(u64::from(cpu) * 8))?;
        if addr == 0 {
            return Ok(None);
        }
        let mut record = vec![0; self.record_size as usize];
        kernel.read(addr, &mut record)?;
        let Some(mut state) = parse_record(addr, cpu, &record)? else {
            return Ok(None);
        };
        if u32_at(&record, 16) & HAS_AREA != 0 {
            let at = addr.wrapping_add(u64::from(self.area_offset));
            let mut area = vec![0; self.area_size as usize];
            kernel.read(at, &mut area)?;
            check_area(at, &area, u64_at(&record, 40))?;
            state.fpu = Some(area);
        }
        Ok(Some(state))
    }
}

/// Address of the head.
fn place(kernel: &Kernel) -> Result<Option<u64>, KernelError> {
    if let Ok(addr) = kernel.module_symbol(MODULE, HEAD) {
        return Ok(Some(addr));
    }
    // A kernel without CONFIG_KALLSYMS_ALL keeps no symbols of variables: the head is aligned, and
    // has a mark, and the module is small.
    const MOST_MODULE: u64 = 1 << 20;
    let modules = kernel.modules()?;
    let Some(module) = modules.iter().find(|module| module.name == MODULE) else {
        return Ok(None);
    };
    for &(base, size) in &module.regions {
        let mut at = base.next_multiple_of(64);
        let end = base.saturating_add(size.min(MOST_MODULE));
        while at.saturating_add(HEAD_SIZE as u64) <= end {
            let mut mark = [0; 16];
            if kernel.read(at, &mut mark).is_ok() && &mark == HEAD_MAGIC {
                return Ok(Some(at));
            }
            at += 64;
        }
    }
    Err(KernelError::NoSymbol {
        name: HEAD.to_owned(),
        module: Some(MODULE.to_owned()),
    })
}

/// A record without its XSAVE area; `None` when nothing was saved.
fn parse_record(addr: u64, cpu: u32, record: &[u8]) -> Result<Option<CpuState>, KernelError> {
    let damaged = |detail: String| KernelError::Damaged {
        what: "the keeper's record of a CPU",
        addr,
        detail,
    };
    let (magic, state, number) = (u64_at(record, 0), u32_at(record, 8), u32_at(record, 12));
    if magic != RECORD_MAGIC || number != cpu {
        return Err(damaged(format!("mark {magic:#x}, CPU {number} for {cpu}")));
    }
    match state {
        EMPTY => return Ok(None),
        DONE => {}
        other => return Err(damaged(format!("it is half written (state {other})"))),
    }
    let valid = u32_at(record, 16);
    let word = |at: usize| u64_at(record, at);
    let pkru = u32::try_from(word(64)).ok();
    Ok(Some(CpuState {
        thread: Some(CpuThread {
            pid: u32_at(record, 20).cast_signed(),
            task: word(24),
            fpu_in_memory: valid & FPU_IN_MEMORY != 0,
        }),
        xcr0: (valid & HAS_XCR0 != 0).then(|| word(32)),
        pkru: pkru.filter(|_| valid & HAS_PKRU != 0),
        user_bases: Some((word(88), word(104))),
        time: (valid & HAS_TIME != 0).then(|| (word(72), word(80))),
        debug: Some([112, 120, 128, 136].map(word)),
        ..CpuState::empty(cpu, CpuSource::Keeper)
    }))
}

/// XSAVE has written this: the standard format, and nothing but what it was asked for.
fn check_area(addr: u64, area: &[u8], asked: u64) -> Result<(), KernelError> {
    let (present, compacted) = (u64_at(area, XSTATE_BV), u64_at(area, XCOMP_BV));
    if present & !asked != 0 || compacted != 0 {
        return Err(KernelError::Damaged {
            what: "the keeper's XSAVE area",
            addr,
            detail: format!(
                "XSTATE_BV {present:#x} of {asked:#x} that were asked for, XCOMP_BV {compacted:#x}"
            ),
        });
    }
    Ok(())
}

/// 0 behind the end: every caller has checked the length.
fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let word = bytes.get(at..at + 4).and_then(|b| b.try_into().ok());
    word.map_or(0, u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let word = bytes.get(at..at + 8).and_then(|b| b.try_into().ok());
    word.map_or(0, u64::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the module's C compiler makes of the header on x86-64.
    fn head() -> [u8; HEAD_SIZE] {
        let mut head = [0; HEAD_SIZE];
        head[..16].copy_from_slice(b"VMRESTORE KEEPER");
        let words = [1_u32, 56, 168, 192, 832, 4];
        for (at, word) in (16..).step_by(4).zip(words) {
            head[at..at + 4].copy_from_slice(&word.to_le_bytes());
        }
        head[40..48].copy_from_slice(&7_u64.to_le_bytes());
        head[48..].copy_from_slice(&0xffff_8880_0000_1000_u64.to_le_bytes());
        head
    }

    fn record(state: u32, valid: u32) -> Vec<u8> {
        let mut record = vec![0; RECORD_SIZE];
        record[..8].copy_from_slice(b"VEEPKREC");
        record[8..12].copy_from_slice(&state.to_le_bytes());
        record[12..16].copy_from_slice(&3_u32.to_le_bytes());
        record[16..20].copy_from_slice(&valid.to_le_bytes());
        record[20..24].copy_from_slice(&4711_u32.to_le_bytes());
        record[64..72].copy_from_slice(&0x5555_5554_u64.to_le_bytes());
        record[112..120].copy_from_slice(&0xd0_u64.to_le_bytes());
        record
    }

    #[test]
    fn a_head_says_its_sizes() {
        let keeper = Keeper::parse(0, &head()).unwrap();
        assert_eq!((keeper.record_size, keeper.area_offset), (168, 192));
        assert_eq!((keeper.area_size, keeper.cpus), (832, 4));
        assert_eq!(keeper.records, 0xffff_8880_0000_1000);
    }

    #[test]
    fn sizes_that_cannot_be_are_refused() {
        // Of the record, the area's offset and its size, the number of CPUs.
        for (at, bad) in [
            (16, 2_u32),
            (20, 55),
            (24, 167),
            (24, u32::MAX),
            (28, 100),
            (28, 1 << 20),
            (32, 512),
            (32, u32::MAX),
            (36, 0),
            (36, u32::MAX),
        ] {
            let mut bytes = head();
            bytes[at..at + 4].copy_from_slice(&bad.to_le_bytes());
            assert!(Keeper::parse(0, &bytes).is_err(), "{bad} at {at}");
        }
        let mut bytes = head();
        bytes[0] = b'X';
        assert!(Keeper::parse(0, &bytes).is_err());
    }

    #[test]
    fn a_record_is_whole_or_not_used() {
        assert!(parse_record(0, 3, &record(EMPTY, 0)).unwrap().is_none());
        assert!(parse_record(0, 3, &record(1, 0)).is_err(), "half written");
        assert!(parse_record(0, 2, &record(DONE, 0)).is_err(), "another CPU");
        let state = parse_record(0, 3, &record(DONE, HAS_PKRU | FPU_IN_MEMORY));
        let state = state.unwrap().unwrap();
        assert_eq!(state.pkru, Some(0x5555_5554));
        assert_eq!(state.debug.unwrap()[0], 0xd0);
        let thread = state.thread.unwrap();
        assert_eq!((thread.pid, thread.fpu_in_memory), (4711, true));
        let state = parse_record(0, 3, &record(DONE, 0)).unwrap().unwrap();
        assert_eq!((state.pkru, state.xcr0), (None, None));
    }

    #[test]
    fn an_area_has_only_what_was_asked_for() {
        let mut area = vec![0; 832];
        area[XSTATE_BV] = 7;
        assert!(check_area(0, &area, 7).is_ok());
        assert!(check_area(0, &area, 3).is_err());
        area[XCOMP_BV + 7] = 0x80;
        assert!(check_area(0, &area, 7).is_err(), "compacted");
    }
}

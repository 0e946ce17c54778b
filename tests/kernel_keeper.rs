//! The keeper's records in a kernel written by hand, whole and damaged. The layout here is that of
//! scripts/keeper/vmrestore_keeper.h, written down once more.

#![allow(missing_docs)]

mod tiny_kernel;

use tiny_kernel::world;
use tiny_kernel::{DIRECT, Dice, Encoding, TinyKernel, words};
use vmrestore::dump::{QemuCpuState, QemuSegment};
use vmrestore::kernel::{CpuSource, CpuState, Kernel};

const MODULE: u64 = 0x30_0000;
const DATA: u64 = 0x31_0000;
const HEAD: u64 = DATA + 0x80;
const RECORDS: u64 = 0x32_0000;
const AREA_OFFSET: u64 = 192;
const AREA_SIZE: u64 = 832;
const TASK: u64 = 0xffff_8880_0123_4000;
/// Of CPU 0, 1 and 2.
const PER_CPU: [u64; 3] = [0x5000, 0x7000, 0x9000];

fn record(cpu: u64) -> u64 {
    RECORDS + 0x1000 * (cpu + 1)
}

/// CPU 0 and 1 have saved theirs, CPU 2 has not come by.
fn tiny(named: bool) -> TinyKernel {
    let mut tiny = TinyKernel::new(false);
    let mut offsets = vec![0; 128];
    offsets[..3].copy_from_slice(&PER_CPU);
    tiny.variable("__per_cpu_offset", &words(&offsets));
    for mask in ["possible", "present", "online"] {
        tiny.variable(&format!("__cpu_{mask}_mask"), &words(&[0b111, 0]));
    }

    let strings = tiny.object(b"\0vmrestore_keeper\0", 8);
    let symbol = [0, 0, 0, 1 | 1 << 32 | 4 << 48, DIRECT + HEAD, 56];
    let table = tiny.object(&words(&symbol), 8);
    let count = if named { 2 } else { 1 };
    let symbols = tiny.object(&words(&[count, strings, table]), 8);
    let list = tiny.variable("modules", &words(&[DIRECT + MODULE + 48; 2]));
    tiny.put(MODULE, &words(&[symbols, 0x1000, DIRECT + DATA]));
    tiny.put(MODULE + 24, b"vmrestore_keeper\0");
    tiny.put(MODULE + 48, &words(&[list, list]));

    tiny.put(HEAD, b"VMRESTORE KEEPER");
    let word = |low: u64, high: u64| low | high << 32;
    tiny.put(
        HEAD + 16,
        &words(&[
            word(1, 56),            // version, head_size
            word(168, AREA_OFFSET), // record_size, area_offset
            word(AREA_SIZE, 4),     // area_size, cpus
            7,                      // xcr0
            DIRECT + RECORDS,
        ]),
    );
    let addresses: Vec<u64> = (0..3).map(|cpu| DIRECT + record(cpu)).collect();
    tiny.put(RECORDS, &words(&addresses));
    for cpu in 0..3 {
        let at = record(cpu);
        tiny.put(at, b"VEEPKREC");
        let state = if cpu == 2 { 0 } else { 2 };
        tiny.put(at + 8, &words(&[word(state, cpu)]));
        if state == 0 {
            continue;
        }
        // Area, XCR0, PKRU, time.
        let valid = 1 | 2 | 16 | 64;
        tiny.put(
            at + 16,
            &words(&[
                word(valid, 4711 + cpu), // valid, pid
                TASK + cpu,
                7,
                7,
                0,
                0,
                0x5555_5554,
                1_000_000 + cpu,
                2_000_000 + cpu,
                0x7f00_0000_1000,       // fs_base
                0xffff_8880_7f00_0000,  // gs_base
                0x7f00_0000_2000 + cpu, // kernel_gs_base
                0xd0,
                0xd1,
                0xd2,
                0xd3,
            ]),
        );
        let area = at + AREA_OFFSET;
        tiny.put(area + 160, &words(&[0x1111 + cpu, 0x2222]));
        tiny.put(area + 512, &words(&[7, 0]));
        tiny.put(area + 576, &words(&[0x3333]));
    }
    tiny
}

fn open(mut tiny: TinyKernel) -> Kernel {
    let (types, _) = world::types();
    let info = tiny.finish(&types, Encoding::AbsolutePercpu);
    tiny.open(&info).expect("opens")
}

#[test]
fn a_cpus_state_is_found_by_symbol_and_without() {
    for named in [true, false] {
        let kernel = open(tiny(named));
        assert!(kernel.has_keeper());
        for cpu in 0..2 {
            let state = kernel.cpu_state(cpu).unwrap().expect("a record");
            let n = u64::from(cpu);
            assert_eq!((state.cpu, state.source), (cpu, CpuSource::Keeper));
            let thread = state.thread.unwrap();
            assert_eq!(
                (thread.task, thread.pid),
                (TASK + n, 4711 + cpu.cast_signed())
            );
            assert!(!thread.fpu_in_memory);
            assert_eq!((state.xcr0, state.pkru), (Some(7), Some(0x5555_5554)));
            assert_eq!(state.debug, Some([0xd0, 0xd1, 0xd2, 0xd3]));
            let user_bases = (0x7f00_0000_1000, 0x7f00_0000_2000 + n);
            assert_eq!(state.user_bases, Some(user_bases));
            let area = state.fpu.unwrap();
            assert_eq!(area.len() as u64, AREA_SIZE);
            assert_eq!(area[160..168], (0x1111 + n).to_le_bytes());
            assert_eq!(area[576..584], 0x3333_u64.to_le_bytes());
        }
        assert_eq!(kernel.cpu_state(2).unwrap(), None, "it did not come by");
        assert_eq!(kernel.cpu_state(3).unwrap(), None, "no such CPU");
        assert_eq!(kernel.kept_time(), Some((1_000_001, 2_000_001)));
    }
}

#[test]
fn without_the_module_there_is_no_keeper() {
    let mut tiny = tiny(true);
    tiny.put(MODULE + 24, b"another_modulexx\0");
    let kernel = open(tiny);
    assert!(!kernel.has_keeper());
    assert_eq!(kernel.cpu_state(0).unwrap(), None);
}

#[test]
fn what_contradicts_itself_is_an_error_and_never_used() {
    for (at, value) in [
        (HEAD, 0),                                  // no mark
        (HEAD + 16, 2 | 56 << 32),                  // another version
        (HEAD + 24, 168 | 100 << 32),               // the area inside the record
        (HEAD + 32, u64::from(u32::MAX) | 4 << 32), // an area of 4 GiB
        (record(0), 0),                             // no mark
        (record(0) + 8, 1),                         // half written
        (record(0) + 8, 2 | 1 << 32),               // another CPU's
        (record(0) + AREA_OFFSET + 512, 1 << 9),    // what was not asked for
        (record(0) + AREA_OFFSET + 520, 1 << 63),   // compacted
        (RECORDS, 0x1000),                          // no address
    ] {
        let mut tiny = tiny(true);
        tiny.put(at, &value.to_le_bytes());
        let kernel = open(tiny);
        let error = kernel
            .cpu_state(0)
            .expect_err(&format!("{value:#x} at {at:#x}"));
        assert!(!error.to_string().is_empty());
    }
}

#[test]
fn no_damage_does_more_than_cost_the_record() {
    let mut dice = Dice(0x5eed);
    let mut used = 0;
    for _ in 0..2000 {
        let mut tiny = tiny(true);
        for _ in 0..1 + dice.roll(4) {
            let at = match dice.roll(3) {
                0 => HEAD + dice.roll(56),
                1 => record(0) + dice.roll(168),
                _ => RECORDS + dice.roll(24),
            };
            tiny.put(at, &[dice.roll(256) as u8]);
        }
        let kernel = open(tiny);
        for cpu in [0, 1, 2, 8191, u32::MAX] {
            if let Ok(Some(state)) = kernel.cpu_state(cpu) {
                used += 1;
                assert_eq!(state.cpu, cpu);
                assert!(state.fpu.is_none_or(|area| area.len() <= 64 << 10));
            }
        }
    }
    assert!(used > 1000, "most damage is elsewhere: {used}");
}

fn outside(cpu: u32, gs: u64, kernel_gs: u64, user: bool) -> CpuState {
    let registers = QemuCpuState {
        cs: QemuSegment {
            selector: if user { 0x33 } else { 0x10 },
            ..QemuSegment::default()
        },
        gs: QemuSegment {
            base: gs,
            ..QemuSegment::default()
        },
        kernel_gs_base: Some(kernel_gs),
        ..QemuCpuState::default()
    };
    CpuState {
        registers: Some(Box::new(registers)),
        ..CpuState::empty(cpu, CpuSource::Note)
    }
}

#[test]
fn a_hypervisors_cpus_must_be_linuxs() {
    let mut bare = tiny(true);
    bare.put(MODULE + 24, b"another_modulexx\0");
    let mut kernel = open(bare);
    // 0 in the kernel, 1 in user mode, 2 in a guest.
    let cpus = [
        outside(0, PER_CPU[0], 0x7f00, false),
        outside(1, 0x7f00, PER_CPU[1], true),
        outside(2, 0xffff_8880_3fc0_0000, 0x7f00, false),
    ];
    kernel.take_outside(cpus.to_vec()).unwrap();
    let host_gs = |kernel: &Kernel, cpu: u32| {
        let state = kernel.cpu_state(cpu).unwrap().unwrap();
        kernel.has_host_gs(cpu, &state.registers.unwrap()).unwrap()
    };
    assert!(host_gs(&kernel, 0) && host_gs(&kernel, 1));
    assert!(!host_gs(&kernel, 2), "that is a guest's");

    let swapped = vec![outside(1, PER_CPU[0], 0, false)];
    let error = kernel.take_outside(swapped).unwrap_err();
    assert!(error.to_string().contains("Linux's CPU 0"), "{error}");
    assert!(kernel.take_outside(vec![outside(64, 0, 0, false)]).is_err());
}

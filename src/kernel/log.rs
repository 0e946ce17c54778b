//! The kernel's log: the last words before the panic.
//!
//! VMCOREINFO says how the log is laid out, for tools just like this one, so it can be read where
//! neither types nor symbols can: of a dump that was cut, or of a kernel without BTF.
//!
//! Two shapes: the lockless ring of Linux kernel/printk/printk_ringbuffer.h since commit
//! 896fbe20b4e2 ("printk: use the lockless ringbuffer") (in v5.10), and `log_buf`, one record
//! behind the other, before.

use std::collections::VecDeque;

use super::{KernelError, VmcoreInfo};

/// The longest record that is read; longer ones are cut. The kernel's own limit is 1024 or 2048.
const MAX_TEXT: usize = 2048;
/// Records of the ring that are looked at, and of the old log: as many as 32 MiB of log hold.
const MAX_RECORDS: u64 = 1 << 20;
const MAX_OLD_RECORDS: usize = 1 << 20;
/// `desc_state` in the two upper bits of `state_var`: written, and written for good.
const COMMITTED: u64 = 1;
const FINALIZED: u64 = 2;
/// The rest of `state_var` is the descriptor's ID.
const ID_MASK: u64 = u64::MAX >> 2;

/// One line of the log, or some lines that were printed at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogRecord {
    /// `local_clock()` when it was printed. Nanoseconds, about since the boot.
    pub time_ns: u64,
    /// What was printed. Bytes that are no UTF-8 are replaced; control characters are still in it.
    pub text: String,
}

/// Reads kernel memory at a virtual address.
pub(super) type Reader<'r> = dyn Fn(u64, &mut [u8]) -> Result<(), KernelError> + 'r;

/// The newest `most` records, the oldest of them first. What was overwritten, or was still being
/// written, is left out.
pub(super) fn newest(
    info: &VmcoreInfo,
    read: &Reader<'_>,
    most: usize,
) -> Result<Vec<LogRecord>, KernelError> {
    let log = Log { info, read };
    match info.symbol("prb")? {
        Some(prb) => log.ring(prb, most),
        None => log.old(most),
    }
}

struct Log<'r> {
    info: &'r VmcoreInfo,
    read: &'r Reader<'r>,
}

impl Log<'_> {
    fn u16(&self, addr: u64) -> Result<u16, KernelError> {
        let mut raw = [0; 2];
        (self.read)(addr, &mut raw)?;
        Ok(u16::from_le_bytes(raw))
    }

    fn u32(&self, addr: u64) -> Result<u32, KernelError> {
        let mut raw = [0; 4];
        (self.read)(addr, &mut raw)?;
        Ok(u32::from_le_bytes(raw))
    }

    fn u64(&self, addr: u64) -> Result<u64, KernelError> {
        let mut raw = [0; 8];
        (self.read)(addr, &mut raw)?;
        Ok(u64::from_le_bytes(raw))
    }

    /// A size or an offset that the note gives.
    fn layout(&self, key: &str) -> Result<u64, KernelError> {
        let value = self.info.need(key)?;
        value
            .parse()
            .ok()
            .filter(|n| *n <= 1 << 20)
            .ok_or_else(|| KernelError::BadInfo {
                key: key.into(),
                value: value.into(),
                wanted: "a size within a structure",
            })
    }

    fn offset(&self, member: &str) -> Result<u64, KernelError> {
        self.layout(&format!("OFFSET({member})"))
    }

    /// The ring whose address the pointer at `prb` holds.
    fn ring(&self, prb: u64, most: usize) -> Result<Vec<LogRecord>, KernelError> {
        let ring = self.u64(prb)?;
        let descs = ring.wrapping_add(self.offset("printk_ringbuffer.desc_ring")?);
        let texts = ring.wrapping_add(self.offset("printk_ringbuffer.text_data_ring")?);
        let counter = self.offset("atomic_long_t.counter")?;
        let at = |base: u64, member: &str| Ok(base.wrapping_add(self.offset(member)?));

        let count_bits = self.u32(at(descs, "prb_desc_ring.count_bits")?)?;
        let size_bits = self.u32(at(texts, "prb_data_ring.size_bits")?)?;
        if !(1..=30).contains(&count_bits) || !(3..=36).contains(&size_bits) {
            return Err(KernelError::Damaged {
                what: "printk_ringbuffer",
                addr: ring,
                detail: format!("count_bits is {count_bits}, size_bits is {size_bits}"),
            });
        }
        let head = self.u64(at(descs, "prb_desc_ring.head_id")?.wrapping_add(counter))?;
        let desc = Desc {
            array: self.u64(at(descs, "prb_desc_ring.descs")?)?,
            size: self.layout("SIZE(prb_desc)")?,
            state: self.offset("prb_desc.state_var")?.wrapping_add(counter),
            begin: self
                .offset("prb_desc.text_blk_lpos")?
                .wrapping_add(self.offset("prb_data_blk_lpos.begin")?),
            next: self
                .offset("prb_desc.text_blk_lpos")?
                .wrapping_add(self.offset("prb_data_blk_lpos.next")?),
        };
        let infos = self.u64(at(descs, "prb_desc_ring.infos")?)?;
        let info_size = self.layout("SIZE(printk_info)")?;
        let time = self.offset("printk_info.ts_nsec")?;
        let text_len = self.offset("printk_info.text_len")?;
        let data = self.u64(at(texts, "prb_data_ring.data")?)?;

        // A record that the dump does not hold costs that record, not the log.
        let mut lost = None;
        let mut records = VecDeque::new();
        for back in 0..MAX_RECORDS.min(1 << count_bits) {
            if records.len() >= most {
                break;
            }
            let id = head.wrapping_sub(back) & ID_MASK;
            let index = id & ((1 << count_bits) - 1);
            let record = || -> Result<Option<LogRecord>, KernelError> {
                let this = desc.array.wrapping_add(index.wrapping_mul(desc.size));
                let state = self.u64(this.wrapping_add(desc.state))?;
                if state & ID_MASK != id || ![COMMITTED, FINALIZED].contains(&(state >> 62)) {
                    // Unfinished, or never used.
                    return Ok(None);
                }
                let begin = self.u64(this.wrapping_add(desc.begin))?;
                let next = self.u64(this.wrapping_add(desc.next))?;
                let info = infos.wrapping_add(index.wrapping_mul(info_size));
                let wanted = usize::from(self.u16(info.wrapping_add(text_len))?).min(MAX_TEXT);
                let Some((offset, room)) = text_place(begin, next, size_bits) else {
                    return Ok(None);
                };
                let mut text = vec![0; wanted.min(usize::try_from(room).unwrap_or(MAX_TEXT))];
                (self.read)(data.wrapping_add(offset), &mut text)?;
                Ok(Some(LogRecord {
                    time_ns: self.u64(info.wrapping_add(time))?,
                    text: String::from_utf8_lossy(&text).into_owned(),
                }))
            };
            match record() {
                Ok(Some(record)) => records.push_front(record),
                Ok(None) => {}
                Err(error) => lost = lost.or(Some(error)),
            }
        }
        match lost {
            Some(error) if records.is_empty() => Err(error),
            _ => Ok(records.into()),
        }
    }

    /// `log_buf`: records of `struct printk_log`, their text behind them. A record of length 0 says
    /// that the next one is at the start of the buffer.
    fn old(&self, most: usize) -> Result<Vec<LogRecord>, KernelError> {
        let symbol = |name: &str| {
            self.info.symbol(name)?.ok_or_else(|| KernelError::NoInfo {
                key: format!("SYMBOL({name})"),
            })
        };
        let buffer = self.u64(symbol("log_buf")?)?;
        let size = u64::from(self.u32(symbol("log_buf_len")?)?);
        let mut at = u64::from(self.u32(symbol("log_first_idx")?)?);
        let end = u64::from(self.u32(symbol("log_next_idx")?)?);
        let header = self.layout("SIZE(printk_log)")?;
        let time = self.offset("printk_log.ts_nsec")?;
        let len = self.offset("printk_log.len")?;
        let text_len = self.offset("printk_log.text_len")?;

        let mut records = VecDeque::new();
        let mut wrapped = false;
        for _ in 0..MAX_OLD_RECORDS {
            if at == end {
                break;
            }
            let here = buffer.wrapping_add(at);
            let damaged = |detail| KernelError::Damaged {
                what: "printk_log",
                addr: here,
                detail,
            };
            if at.saturating_add(header) > size {
                return Err(damaged(format!("it is beyond log_buf_len, {size}")));
            }
            let record = u64::from(self.u16(here.wrapping_add(len))?);
            if record == 0 {
                if wrapped {
                    return Err(damaged("its length is 0".into()));
                }
                wrapped = true;
                at = 0;
                continue;
            }
            let bytes = u64::from(self.u16(here.wrapping_add(text_len))?);
            if record < header + bytes || at + record > size {
                return Err(damaged(format!(
                    "its length is {record}, of its text {bytes}"
                )));
            }
            let mut text = vec![0; usize::try_from(bytes).unwrap_or(0).min(MAX_TEXT)];
            (self.read)(here.wrapping_add(header), &mut text)?;
            if records.len() >= most {
                records.pop_front();
            }
            records.push_back(LogRecord {
                time_ns: self.u64(here.wrapping_add(time))?,
                text: String::from_utf8_lossy(&text).into_owned(),
            });
            at += record;
        }
        Ok(records.into())
    }
}

/// Where the parts of a `struct prb_desc` are.
struct Desc {
    array: u64,
    size: u64,
    state: u64,
    begin: u64,
    next: u64,
}

/// Where in the ring the text of a data block at logical positions `begin..next` stands, behind its
/// ID, and how many bytes there are; `None` when it has none. A block that does not fit before the
/// end of the ring is at its start.
fn text_place(begin: u64, next: u64, size_bits: u32) -> Option<(u64, u64)> {
    const ID: u64 = 8;
    if begin & 1 != 0 || next & 1 != 0 {
        // No data: FAILED_LPOS, NO_LPOS, EMPTY_LINE_LPOS.
        return None;
    }
    let size = 1u64 << size_bits;
    // A block may end just where the ring does.
    let wraps = (begin >> size_bits) != (next.wrapping_sub(1) >> size_bits);
    let start = if wraps { 0 } else { begin & (size - 1) };
    let end = match next & (size - 1) {
        0 => size,
        end => end,
    };
    let room = end.checked_sub(start)?.checked_sub(ID)?;
    Some((start + ID, room))
}

//! The kernel's log, out of rings and buffers written by hand, laid out as no Linux lays them out:
//! VMCOREINFO alone says where what is.

mod tiny_kernel;

use std::sync::Arc;

use tiny_kernel::{Dice, Encoding, TinyKernel, world};
use vmrestore::kernel::{FirstLook, Kernel, KernelError, LogRecord};

const REUSABLE: u64 = 3;
const FINALIZED: u64 = 2;
const COMMITTED: u64 = 1;
const RESERVED: u64 = 0;

/// Descriptors, and bytes of text.
const COUNT_BITS: u32 = 3;
const SIZE_BITS: u32 = 8;
const DESC: usize = 40;
const INFO: usize = 24;

/// A ring as `printk` fills it: blocks of an ID and a text, one behind the other, the one that does
/// not fit at the end at the start.
struct Ring {
    descs: Vec<u8>,
    infos: Vec<u8>,
    text: Vec<u8>,
    head: u64,
    lpos: u64,
}

impl Ring {
    fn new(first_id: u64) -> Ring {
        let mut descs = vec![0; DESC << COUNT_BITS];
        for desc in descs.chunks_mut(DESC) {
            desc[16..24].copy_from_slice(&(REUSABLE << 62).to_le_bytes());
        }
        Ring {
            descs,
            infos: vec![0; INFO << COUNT_BITS],
            text: vec![0xee; 1 << SIZE_BITS],
            head: first_id.wrapping_sub(1),
            // Well into the ring's third round.
            lpos: 3 << SIZE_BITS,
        }
    }

    fn print(&mut self, state: u64, time: u64, text: &[u8]) {
        self.head = self.head.wrapping_add(1) & u64::MAX >> 2;
        let len = (8 + text.len() as u64).next_multiple_of(8);
        let size = 1u64 << SIZE_BITS;
        let begin = self.lpos;
        let room = size - begin % size;
        let (at, next) = if len <= room {
            (begin % size, begin + len)
        } else {
            (0, begin + room + len)
        };
        self.text[at as usize..at as usize + 8].copy_from_slice(&self.head.to_le_bytes());
        self.text[at as usize + 8..][..text.len()].copy_from_slice(text);
        self.lpos = next;
        self.describe(state, time, text.len() as u16, begin, next);
    }

    fn describe(&mut self, state: u64, time: u64, len: u16, begin: u64, next: u64) {
        let index = self.head as usize & ((1 << COUNT_BITS) - 1);
        let desc = &mut self.descs[index * DESC..][..DESC];
        desc[16..24].copy_from_slice(&(state << 62 | self.head).to_le_bytes());
        desc[24..32].copy_from_slice(&next.to_le_bytes());
        desc[32..40].copy_from_slice(&begin.to_le_bytes());
        let info = &mut self.infos[index * INFO..][..INFO];
        info[2..4].copy_from_slice(&len.to_le_bytes());
        info[8..16].copy_from_slice(&time.to_le_bytes());
    }

    /// Puts it into a kernel, and says in its note where everything is.
    fn place(&self, tiny: &mut TinyKernel) -> u64 {
        let descs = tiny.object(&self.descs, 64);
        let infos = tiny.object(&self.infos, 64);
        let text = tiny.object(&self.text, 64);
        let mut ring = vec![0; 96];
        let mut put = |at: usize, bytes: &[u8]| ring[at..at + bytes.len()].copy_from_slice(bytes);
        // text_data_ring at 8, desc_ring at 40.
        put(8, &text.to_le_bytes());
        put(16, &SIZE_BITS.to_le_bytes());
        put(40, &(self.head).to_le_bytes());
        put(56, &infos.to_le_bytes());
        put(64, &descs.to_le_bytes());
        put(72, &COUNT_BITS.to_le_bytes());
        let ring = tiny.object(&ring, 64);
        let prb = tiny.variable("prb", &ring.to_le_bytes());
        for line in [
            &format!("SYMBOL(prb)={prb:x}"),
            "OFFSET(printk_ringbuffer.desc_ring)=40",
            "OFFSET(printk_ringbuffer.text_data_ring)=8",
            "OFFSET(atomic_long_t.counter)=0",
            "OFFSET(prb_desc_ring.count_bits)=32",
            "OFFSET(prb_desc_ring.descs)=24",
            "OFFSET(prb_desc_ring.infos)=16",
            "OFFSET(prb_desc_ring.head_id)=0",
            "OFFSET(prb_data_ring.size_bits)=8",
            "OFFSET(prb_data_ring.data)=0",
            "SIZE(prb_desc)=40",
            "OFFSET(prb_desc.state_var)=16",
            "OFFSET(prb_desc.text_blk_lpos)=24",
            "OFFSET(prb_data_blk_lpos.begin)=8",
            "OFFSET(prb_data_blk_lpos.next)=0",
            "SIZE(printk_info)=24",
            "OFFSET(printk_info.ts_nsec)=8",
            "OFFSET(printk_info.text_len)=2",
        ] {
            tiny.info.push(line.to_owned());
        }
        ring
    }
}

fn open(tiny: &mut TinyKernel) -> (Kernel, String) {
    let info = tiny.finish(&world::types().0, Encoding::Relative);
    (tiny.open(&info).expect("a kernel"), info)
}

fn record(time_ns: u64, text: &str) -> LogRecord {
    LogRecord {
        time_ns,
        text: text.into(),
    }
}

#[test]
fn the_newest_records_come_out_in_their_order_across_both_wraps() {
    let mut ring = Ring::new(u64::MAX >> 2);
    // IDs wrap after the first, descriptors after eight, text after about seven.
    let lines: Vec<String> = (0..13)
        .map(|i| format!("line {i} {}", "x".repeat(i * 2)))
        .collect();
    for (i, line) in lines.iter().enumerate() {
        let state = if i % 2 == 0 { FINALIZED } else { COMMITTED };
        ring.print(state, 1000 + i as u64, line.as_bytes());
    }
    ring.print(RESERVED, 5000, b"half writ");
    let mut tiny = TinyKernel::new(false);
    ring.place(&mut tiny);
    let (kernel, _) = open(&mut tiny);

    let wanted: Vec<LogRecord> = (8..13)
        .map(|i| record(1000 + i as u64, &lines[i]))
        .collect();
    assert_eq!(kernel.log(5).unwrap(), wanted);
    // Seven of the eight descriptors are whole.
    let all = kernel.log(100).unwrap();
    assert_eq!(all.len(), 7);
    assert_eq!(all[2..], wanted);
    assert!(kernel.log(0).unwrap().is_empty());
}

#[test]
fn the_log_needs_no_types_and_no_symbols() {
    let mut ring = Ring::new(7);
    ring.print(FINALIZED, 42, b"Kernel panic - not syncing: \xff test");
    let mut tiny = TinyKernel::new(true);
    let top = tiny_kernel::DIRECT;
    // The direct map is in the page tables too: nothing else says where it is.
    tiny.map_kernel(top, 21, 0x1e3);
    tiny.map_kernel(top + (2 << 20), 21, (2 << 20) | 0x1e3);
    ring.place(&mut tiny);
    let info = tiny.info.join("\n");
    assert!(!info.contains("kallsyms"));
    assert!(tiny.open(&info).is_err());
    let look = FirstLook::new(Arc::new(tiny.memory.clone()), &info).unwrap();
    let text = "Kernel panic - not syncing: \u{fffd} test";
    assert_eq!(look.log(9).unwrap(), [record(42, text)]);
}

#[test]
fn records_without_text_are_passed_over() {
    let mut ring = Ring::new(1);
    ring.print(FINALIZED, 1, b"first");
    ring.head += 1;
    // NO_LPOS: a record for which there was no room.
    ring.describe(FINALIZED, 2, 500, 3, 3);
    ring.print(FINALIZED, 3, b"third");
    let mut tiny = TinyKernel::new(false);
    ring.place(&mut tiny);
    let (kernel, _) = open(&mut tiny);
    assert_eq!(
        kernel.log(9).unwrap(),
        [record(1, "first"), record(3, "third")]
    );
}

#[test]
fn a_ring_of_absurd_size_is_an_error_that_says_where() {
    for (at, value) in [(72, 40u32), (72, 0), (16, 63), (16, 0)] {
        let mut ring = Ring::new(1);
        ring.print(FINALIZED, 1, b"first");
        let mut tiny = TinyKernel::new(false);
        let place = ring.place(&mut tiny);
        tiny.put(place - tiny_kernel::DIRECT + at, &value.to_le_bytes());
        let (kernel, _) = open(&mut tiny);
        match kernel.log(9) {
            Err(KernelError::Damaged { what, addr, .. }) => {
                assert_eq!((what, addr), ("printk_ringbuffer", place));
            }
            other => panic!("{at} {value}: {other:?}"),
        }
    }
}

#[test]
fn a_damaged_ring_gives_records_or_an_error_and_never_more_than_were_asked_for() {
    let mut dice = Dice(0x2545_f491_4f6c_dd1d);
    for _ in 0..2000 {
        let mut ring = Ring::new(dice.roll(100));
        for i in 0..6 {
            ring.print(FINALIZED, i, b"some text of some length");
        }
        for _ in 0..4 {
            let at = dice.roll(ring.descs.len() as u64) as usize;
            ring.descs[at] = dice.roll(256) as u8;
            let at = dice.roll(ring.infos.len() as u64) as usize;
            ring.infos[at] = dice.roll(256) as u8;
        }
        let mut tiny = TinyKernel::new(false);
        ring.place(&mut tiny);
        tiny.map_kernel(tiny_kernel::DIRECT, 21, 0x1e3);
        tiny.map_kernel(tiny_kernel::DIRECT + (2 << 20), 21, (2 << 20) | 0x1e3);
        let look = FirstLook::new(Arc::new(tiny.memory.clone()), &tiny.info.join("\n")).unwrap();
        if let Ok(records) = look.log(4) {
            assert!(records.len() <= 4);
            assert!(records.iter().all(|r| r.text.len() <= 3 << SIZE_BITS));
        }
    }
}

/// `struct printk_log` of 5.9 and before: here 24 bytes, `len` at 16, `text_len` at 20.
fn old_record(out: &mut Vec<u8>, time: u64, text: &[u8]) {
    let len = (24 + text.len()).next_multiple_of(8);
    let at = out.len();
    out.resize(at + len, 0);
    out[at..at + 8].copy_from_slice(&time.to_le_bytes());
    out[at + 16..at + 18].copy_from_slice(&(len as u16).to_le_bytes());
    out[at + 20..at + 22].copy_from_slice(&(text.len() as u16).to_le_bytes());
    out[at + 24..at + 24 + text.len()].copy_from_slice(text);
}

fn old_log(buffer: &[u8], first: u32, next: u32) -> Result<Vec<LogRecord>, KernelError> {
    let mut tiny = TinyKernel::new(false);
    let at = tiny.object(buffer, 64);
    let variables = [
        ("log_buf", at.to_le_bytes().to_vec()),
        ("log_buf_len", (buffer.len() as u32).to_le_bytes().to_vec()),
        ("log_first_idx", first.to_le_bytes().to_vec()),
        ("log_next_idx", next.to_le_bytes().to_vec()),
    ];
    for (name, bytes) in variables {
        let addr = tiny.variable(name, &bytes);
        tiny.info.push(format!("SYMBOL({name})={addr:x}"));
    }
    for line in [
        "SIZE(printk_log)=24",
        "OFFSET(printk_log.ts_nsec)=0",
        "OFFSET(printk_log.len)=16",
        "OFFSET(printk_log.text_len)=20",
    ] {
        tiny.info.push(line.into());
    }
    open(&mut tiny).0.log(3)
}

#[test]
fn the_log_of_kernels_before_5_10_wraps_at_a_record_of_length_0() {
    let mut buffer = Vec::new();
    old_record(&mut buffer, 40, b"newer");
    old_record(&mut buffer, 50, b"newest");
    let next = buffer.len() as u32;
    buffer.resize(buffer.len() + 40, 0xff);
    let first = buffer.len() as u32;
    old_record(&mut buffer, 10, b"oldest");
    old_record(&mut buffer, 20, b"old");
    buffer.extend([0; 24]);
    let found = old_log(&buffer, first, next).unwrap();
    assert_eq!(
        found,
        [record(20, "old"), record(40, "newer"), record(50, "newest")]
    );
    assert!(old_log(&buffer, 0, 0).unwrap().is_empty());
    // A record that is shorter than its own header, and one that goes round for ever.
    buffer[16] = 8;
    assert!(matches!(
        old_log(&buffer, first, next),
        Err(KernelError::Damaged {
            what: "printk_log",
            ..
        })
    ));
    assert!(old_log(&[0; 64], 0, 40).is_err());
}

//! A dump of 1 TiB of memory; in a process of its own, because it measures that process's memory.

mod synth;

use std::io::{Seek, SeekFrom, Write};

use synth::{Kdump, Machine, Noise, PAGE, Slot, TempFile, put};
use vmrestore::dump::{Dump, Missing, PageCounts, PageState, PhysicalMemory};

/// 1 TiB of physical memory, of which three pages were dumped: the file is sparse, and its index
/// must not hold the bitmaps in memory.
#[test]
fn a_terabyte_is_opened_in_little_memory() {
    let small = Machine {
        slots: (1..=3).map(|i| Slot::Data(Box::new([i; PAGE]))).collect(),
        vmcoreinfo: None,
        cpus: Vec::new(),
        qemu: false,
    };
    let bytes = small.kdump(
        Kdump {
            store: synth::store_raw,
            status: 0,
            ..Kdump::default()
        },
        &mut Noise(8),
    );
    let frames: u64 = 1 << 28;
    let bitmap_bytes = frames / 8;
    let mut header = bytes[..2 * PAGE].to_vec();
    put(
        &mut header,
        436,
        &((bitmap_bytes / PAGE as u64 * 2) as u32).to_le_bytes(),
    );
    put(&mut header, PAGE + 96, &frames.to_le_bytes());
    let pfns = [0, frames / 2 + 5, frames - 1];
    let data_at = 2 * PAGE as u64 + 2 * bitmap_bytes + 3 * 24;

    let file = TempFile::new(&header);
    let mut out = std::fs::OpenOptions::new()
        .write(true)
        .open(file.path())
        .unwrap();
    for pfn in pfns {
        for bitmap in [0, 1] {
            out.seek(SeekFrom::Start(
                2 * PAGE as u64 + bitmap * bitmap_bytes + pfn / 8,
            ))
            .unwrap();
            out.write_all(&[1 << (pfn % 8)]).unwrap();
        }
    }
    out.seek(SeekFrom::Start(2 * PAGE as u64 + 2 * bitmap_bytes))
        .unwrap();
    for i in 0..3u64 {
        out.write_all(&(data_at + i * PAGE as u64).to_le_bytes())
            .unwrap();
        out.write_all(&(PAGE as u32).to_le_bytes()).unwrap();
        out.write_all(&[0; 12]).unwrap();
    }
    for i in 1..=3 {
        out.write_all(&[i; PAGE]).unwrap();
    }
    let before = resident_kib();
    let dump = Dump::open(file.path()).unwrap();
    let grown = resident_kib().saturating_sub(before);
    assert!(grown < 8 << 10, "opening took {grown} KiB");
    assert_eq!(dump.max_pfn(), frames);
    assert_eq!(
        dump.page_counts(),
        PageCounts {
            present: 3,
            filtered: 0,
            not_ram: frames - 3,
            truncated: 0
        }
    );
    for (i, pfn) in pfns.into_iter().enumerate() {
        let mut word = [0; 8];
        dump.read_physical(pfn * PAGE as u64 + 4088, &mut word)
            .unwrap();
        assert_eq!(word, [i as u8 + 1; 8]);
        assert_eq!(
            dump.page_state(pfn + 1),
            PageState::Missing(Missing::NotRam)
        );
    }
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

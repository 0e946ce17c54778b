//! Dumps of 1 TiB of memory; in a process of its own, because it measures that process's memory.
//! Those with a real kernel in them need the lab: `scripts/test` runs them with `--include-ignored`.

mod synth;

use std::io::{Seek, SeekFrom, Write};
use std::path::Path;
use std::process::Command;

use synth::{Kdump, Machine, Noise, PAGE, Slot, TempFile, put};
use vmrestore::dump::{Dump, Missing, PageCounts, PageState, PhysicalMemory};
use vmrestore_lab::{Lab, Scenario, grow, measure};

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
    status_kib("VmRSS:")
}

fn status_kib(field: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// What listing and reading may take at the most.
const BOUND_KIB: u64 = 128 << 10;

/// A real dump, with as much synthetic memory above its own that it is one of 1 TiB: `vmrestore
/// list` says the same of it, and neither that nor reading takes more than 128 MiB.
#[test]
#[ignore = "needs the lab: scripts/test"]
fn a_terabyte_with_a_real_kernel_is_listed_and_read_in_128_mib() -> anyhow::Result<()> {
    let lab = Lab::prepare()?;
    let cached = lab.dump(&Scenario::named("formats").expect("known"))?;
    let work = lab.new_run().with_extension("terabyte");
    std::fs::create_dir_all(&work)?;
    let whole = cached.file(vmrestore_lab::scenario::WHOLE_DUMP);
    let (straight, file) = (work.join("straight"), work.join("grown"));
    for format in [
        "kdump",
        "flattened",
        "elf, few segments",
        "elf, many segments",
    ] {
        let added = match format {
            "kdump" => grow::kdump(&cached.path(), &file, 1 << 40, 16 << 20)?,
            "flattened" => {
                let added = grow::kdump(&cached.path(), &straight, 1 << 40, 4 << 20)?;
                grow::flattened(&straight, &file)?;
                std::fs::remove_file(&straight)?;
                added
            }
            "elf, few segments" => grow::elf(&whole, &file, 1 << 40, 1)?,
            _ => grow::elf(&whole, &file, 1 << 40, 1 << 20)?,
        };
        let original = match format {
            "kdump" | "flattened" => cached.path(),
            _ => whole.clone(),
        };
        assert_eq!(list(&file)?, list(&original)?, "{format}");
        let mut command = Command::new(env!("CARGO_BIN_EXE_vmrestore"));
        let usage = measure::run(command.args(["list", "--json"]).arg(&file))?;
        let listing = usage.peak_kib;
        let reading = read_here_and_there(&file, added)?;
        println!("{format}: {added} pages added; list {listing} KiB, reading {reading} KiB");
        assert!(listing < BOUND_KIB, "{format}: listing took {listing} KiB");
        assert!(reading < BOUND_KIB, "{format}: reading took {reading} KiB");
        std::fs::remove_file(&file)?;
    }
    std::fs::remove_dir_all(&work)?;
    Ok(())
}

fn list(file: &Path) -> anyhow::Result<serde_json::Value> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vmrestore"));
    let output = command.args(["list", "--json"]).arg(file).output()?;
    anyhow::ensure!(output.status.success(), "{output:?}");
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// Reads 8 bytes in a hundred thousand places, and 512 MiB in bulk from four; what that took at the
/// most, KiB.
fn read_here_and_there(file: &Path, added: u64) -> anyhow::Result<u64> {
    // The peak counts from here on.
    std::fs::write("/proc/self/clear_refs", "5")?;
    let dump = Dump::open(file)?;
    assert!(dump.page_counts().present > added);
    let mut noise = Noise(41);
    let mut found = 0;
    for _ in 0..100_000 {
        let pfn = noise.below(dump.max_pfn());
        let read = dump.read_physical(pfn * PAGE as u64, &mut [0; 8]);
        assert_eq!(
            read.is_ok(),
            dump.page_state(pfn) == PageState::Present,
            "{pfn:#x}"
        );
        found += u64::from(read.is_ok());
    }
    assert!(found > 500, "{found} of 100 000 places");
    let mut buffer = vec![0; 4 << 20];
    for quarter in 0..4 {
        let from = dump.max_pfn() / 4 * quarter + (1 << 20);
        let all = (from..dump.max_pfn()).take(8 << 20);
        let present: Vec<u64> = all
            .filter(|pfn| dump.page_state(*pfn) == PageState::Present)
            .take(32 << 10)
            .collect();
        for pfns in present.chunks(1 << 10) {
            let out = &mut buffer[..pfns.len() * PAGE];
            assert!(dump.read_pages(pfns, out).is_empty());
        }
    }
    Ok(status_kib("VmHWM:"))
}

//! The memory of a guest as a file, and read from its dump by one core: by drgn, which decodes with
//! libkdumpfile.

use crate::Guest;
use anyhow::{Context, Result, ensure};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use vmrestore::dataset::{PageContent, PageSource};
use vmrestore::extract::DeadHost;
use vmrestore_lab::{Lab, drgn};

/// Where the VMM has its guest's memory (vmm.c).
const MEMORY: u64 = 0x2000_0000_0000;
const PAGE: u64 = 4096;

const READ: &str = "
import sys, time, drgn
prog = drgn.Program()
prog.set_core_dump(sys.argv[1])
began = time.monotonic()
for line in open(sys.argv[2]):
    start, size = (int(word) * 4096 for word in line.split())
    for at in range(start, start + size, 1 << 20):
        prog.read(at, min(1 << 20, start + size - at), True)
print(time.monotonic() - began)
";

/// Writes a guest's memory to `ram`; a file of its page frames, where they begin and how many.
pub fn frames(dump: &Path, guest: &Guest, ram: &Path) -> Result<PathBuf> {
    let dead = DeadHost::open(dump)?;
    let dataset = dead.dataset(&[guest.pid])?;
    let pages = dead.pages();
    let vmas = dataset.processes.iter().flat_map(|p| &p.mm.vmas);
    let memory = vmas
        .into_iter()
        .find(|vma| vma.start == MEMORY)
        .context("no guest memory")?;
    let file = File::create(ram)?;
    file.set_len(guest.mib << 20)?;
    let mut text = String::new();
    let mut buffer = vec![0; 1 << 20];
    let most = buffer.len() as u64 / PAGE;
    for run in &memory.pages {
        if let PageContent::Frame(pfn) = run.content {
            text += &format!("{pfn} {}\n", run.count);
        }
        let mut first = 0;
        while first < run.count {
            let count = most.min(run.count - first);
            let part = &mut buffer[..usize::try_from(count * PAGE)?];
            pages.read_pages(run, first, count, part)?;
            file.write_all_at(part, run.start - MEMORY + first * PAGE)?;
            first += count;
        }
    }
    let list = ram.with_extension("frames");
    fs::write(&list, text)?;
    Ok(list)
}

/// Milliseconds for all of them.
pub fn by_drgn(dump: &Path, frames: &Path) -> Result<f64> {
    let python = drgn::python(&Lab::directory().canonicalize()?)?;
    let output = Command::new(python)
        .args(["-c", READ])
        .args([dump, frames])
        .output()?;
    ensure!(
        output.status.success(),
        "drgn: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let seconds: f64 = String::from_utf8_lossy(&output.stdout).trim().parse()?;
    Ok(seconds * 1e3)
}

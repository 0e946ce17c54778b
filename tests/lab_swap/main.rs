//! Pages that were swapped out when the host died: to a disk, to a file, to zram and to zswap in each
//! of their compressions, of programs and of guests; and that a swap area which was used since is
//! refused.
//!
//! Needs the lab (docs/lab.md): `scripts/test` sets it up and runs these with `--include-ignored`.
//! Each program (tests/programs/swapped.c) verifies its own pages, page by page, against what a
//! formula says, after the restore; what guests say is judged by the lab: that is the evidence.

mod areas;
mod guests;
mod zswap;

use anyhow::{Context, Result, ensure};
use std::path::Path;
use std::time::Duration;
use vmrestore_lab::crash::Extra;
use vmrestore_lab::{Output, Rebooted, debian};

const MINUTE: Duration = Duration::from_secs(60);
const RESTORE: Duration = Duration::from_secs(300);
/// Pages of a program's private and of its shared memory, each.
const PAGES: u64 = 600;

/// Shell commands that say which device is the swap disk.
const FIND_DISK: &str = "for b in /sys/block/vd*; do \
     [ \"$(cat $b/serial)\" = swap ] && area=/dev/${b##*/}; done";

/// The modules that zram, zswap and their compressions need, in order, and an area that is encrypted.
const MODULES: [&str; 14] = [
    "mm/zsmalloc",
    "mm/z3fold",
    "crypto/lzo",
    "crypto/lzo-rle",
    "lib/lz4/lz4_compress",
    "crypto/lz4",
    "lib/lz4/lz4hc_compress",
    "crypto/lz4hc",
    "lib/zlib_deflate/zlib_deflate",
    "crypto/deflate",
    "lib/zstd/zstd_compress",
    "crypto/zstd",
    "drivers/block/zram/zram",
    "drivers/md/dm-crypt",
];

fn vmrestore() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_vmrestore"))
}

/// Takes the kernel's modules along; the shell command that loads them. Some kernels have them built in, or
/// not at all.
fn take_modules(kernel: &debian::Kernel, extra: &mut Extra, zram: usize) -> Result<String> {
    let mut load = String::new();
    for module in MODULES {
        if let Ok(Some(file)) = kernel.module(module) {
            let name = file.file_name().context("no name")?.to_string_lossy();
            let options = match name.starts_with("zram") {
                true => format!(" num_devices={zram}"),
                false => String::new(),
            };
            load += &format!("insmod /dump/{name}{options}; ");
            extra.luggage.push((name.into_owned(), file.clone()));
        }
    }
    Ok(load)
}

fn expect(output: &Output, code: i32, words: &[&str]) -> Result<()> {
    let said = format!("{}{}", output.stdout, output.stderr);
    ensure!(output.code == code, "exit code {}\n{said}", output.code);
    for word in words {
        ensure!(said.contains(word), "it does not say {word:?}\n{said}");
    }
    Ok(())
}

/// A shell command that swaps out what a program of so many pages, twice, is, and ends it.
fn wear(pages: u64) -> String {
    format!(
        "/data/swapped 77 {pages} >/data/swapped.wear 2>&1 & p=$!; \
         for i in $(seq 300); do grep -q away /data/swapped.wear && break; sleep 0.3; done; \
         cat /proc/swaps; grep pswpout /proc/vmstat; kill $p; \
         [ $(awk '/pswpout/ {{print $2}}' /proc/vmstat) -ge {pages} ]"
    )
}

/// The program verifies its memory.
fn verify(host: &mut Rebooted, name: &str, pid: u32) -> Result<()> {
    let ask = format!(
        "kill -USR1 {pid} && for i in $(seq 60); do \
         grep -qE 'verified|BAD' /data/swapped.{name} && break; sleep 0.5; done; \
         cat /data/swapped.{name}"
    );
    let got = host.run(&ask, 2 * MINUTE)?.success("verify")?;
    let wanted = format!("verified {} pages", 2 * PAGES);
    ensure!(got.stdout.contains(&wanted), "{name}: {}", got.stdout);
    println!("{name}: {}", got.stdout.trim().replace('\n', ", "));
    Ok(())
}

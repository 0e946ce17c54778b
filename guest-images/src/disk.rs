//! The guest's disks: rings of blocks that are written with O_DIRECT, each
//! with the number of the line it belongs to, and read back.
//!
//! Options on the kernel's command line: `lab.disks=N` (so many are waited
//! for), `lab.load=disk` (beside the lines, threads write to the upper half of
//! every disk without a pause, and read back what they wrote).

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::pattern::mix;

/// Bytes of one disk block.
const BLOCK: usize = 4096;
/// Older blocks read back for each line.
const WINDOW: u64 = 8;
/// Threads of load on each disk: so many requests are under way at once.
const LOADERS: u64 = 4;
/// Virtio disks and SCSI disks, in the order in which they are numbered.
const NAMES: [&str; 8] = ["vda", "vdb", "vdc", "vdd", "sda", "sdb", "sdc", "sdd"];

/// Memory aligned for O_DIRECT.
#[repr(C, align(4096))]
struct Block([u8; BLOCK]);

/// All disks of the guest.
pub struct Disks {
    disks: Vec<Disk>,
    /// Blocks that the load found to be wrong.
    bad: Arc<AtomicU64>,
}

struct Disk {
    file: Arc<File>,
    /// Blocks of the ring.
    blocks: u64,
    /// Blocks behind it, for the load.
    behind: u64,
}

impl Disks {
    /// The disks, once they are there; a guest that was promised none waits for
    /// nothing but this half second.
    #[must_use]
    pub fn find(nonce: u64, option: impl Fn(&str) -> Option<String>) -> Self {
        let wanted = option("lab.disks=").and_then(|n| n.parse::<usize>().ok());
        let load = option("lab.load=").as_deref() == Some("disk");
        let mut disks = Vec::new();
        for _ in 0..if wanted.is_some() { 200 } else { 10 } {
            disks = NAMES.iter().filter_map(|n| Disk::open(n, load)).collect();
            if disks.len() >= wanted.unwrap_or(1) {
                break;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        let bad = Arc::new(AtomicU64::new(0));
        for disk in disks.iter().filter(|disk| disk.behind > 0) {
            disk.load(nonce, &bad);
        }
        Self { disks, bad }
    }

    /// Blocks of each disk's ring, for the first line; `-` without a disk.
    #[must_use]
    pub fn rings(&self) -> String {
        let rings: Vec<String> = self.disks.iter().map(|d| d.blocks.to_string()).collect();
        match rings.is_empty() {
            true => "-".into(),
            false => rings.join(","),
        }
    }

    /// Writes block `seq` of every disk, reads it and older ones, and says what
    /// it was and how it went.
    #[must_use]
    pub fn write_and_verify(&self, nonce: u64, seq: u64) -> (String, String) {
        if self.disks.is_empty() {
            return ("-".into(), "-".into());
        }
        let mut state = "ok".to_owned();
        for (i, disk) in self.disks.iter().enumerate() {
            let this = disk.write_and_verify(nonce, seq);
            if this != "ok" && state == "ok" {
                state = format!("{this}@{i}");
            }
        }
        let bad = self.bad.load(Ordering::Relaxed);
        if bad > 0 && state == "ok" {
            state = format!("BAD:load:{bad}");
        }
        (seq.to_string(), state)
    }
}

impl Disk {
    fn open(name: &str, load: bool) -> Option<Self> {
        let sectors = std::fs::read_to_string(format!("/sys/block/{name}/size")).ok()?;
        let all = sectors.trim().parse::<u64>().ok()? / (BLOCK as u64 / 512);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_DIRECT)
            .open(format!("/dev/{name}"))
            .ok()?;
        let behind = if load { all / 2 } else { 0 };
        (all > 0).then(|| Self {
            file: Arc::new(file),
            blocks: all - behind,
            behind,
        })
    }

    /// Block `seq`: its words are the nonce, `seq`, then the mixed stream.
    fn content(nonce: u64, seq: u64, block: &mut Block) {
        for (i, word) in block.0.chunks_exact_mut(8).enumerate() {
            let value = match i {
                0 => nonce,
                1 => seq,
                // Runs of equal words again, for the dump's size.
                _ => mix(nonce ^ seq, (i / 8) as u64),
            };
            word.copy_from_slice(&value.to_le_bytes());
        }
    }

    /// Writes block `seq`, then reads it and a window of older ones.
    fn write_and_verify(&self, nonce: u64, seq: u64) -> String {
        let mut block = Box::new(Block([0; BLOCK]));
        let mut want = Box::new(Block([0; BLOCK]));
        let at = |seq: u64| seq % self.blocks * BLOCK as u64;
        Self::content(nonce, seq, &mut block);
        if let Err(error) = self.file.write_all_at(&block.0, at(seq)) {
            return format!("BAD:write:{}", error.raw_os_error().unwrap_or(0));
        }
        // The window of newest blocks, and one that wanders through all that
        // the ring still holds.
        let oldest = (seq + 1).saturating_sub(self.blocks).max(1);
        let wanderer = oldest + mix(nonce, seq) % (seq - oldest + 1);
        let newest = seq.saturating_sub(WINDOW).max(oldest);
        for old in (newest..=seq).chain([wanderer]) {
            if let Err(error) = self.file.read_exact_at(&mut block.0, at(old)) {
                return format!("BAD:read:{old}:{}", error.raw_os_error().unwrap_or(0));
            }
            Self::content(nonce, old, &mut want);
            if block.0 != want.0 {
                return format!("BAD:content:{old}");
            }
        }
        "ok".into()
    }

    /// Threads that fill the blocks behind the ring over and over, each its own
    /// part. What one wrote it finds again a whole turn later.
    fn load(&self, nonce: u64, bad: &Arc<AtomicU64>) {
        let part = self.behind / LOADERS;
        for loader in (0..LOADERS).filter(|_| part > 0) {
            let first = self.blocks + loader * part;
            let file = Arc::clone(&self.file);
            let bad = Arc::clone(bad);
            let stream = mix(nonce, loader + 1);
            std::thread::spawn(move || {
                let mut block = Box::new(Block([0; BLOCK]));
                let mut want = Box::new(Block([0; BLOCK]));
                for seq in 0u64.. {
                    let at = |seq: u64| (first + seq % part) * BLOCK as u64;
                    let mut good = true;
                    if seq >= part {
                        Self::content(stream, seq - part, &mut want);
                        good =
                            file.read_exact_at(&mut block.0, at(seq)).is_ok() && block.0 == want.0;
                    }
                    Self::content(stream, seq, &mut block);
                    good &= file.write_all_at(&block.0, at(seq)).is_ok();
                    if !good {
                        bad.fetch_add(1, Ordering::Relaxed);
                    }
                    std::thread::sleep(Duration::from_millis(1));
                }
            });
        }
    }
}

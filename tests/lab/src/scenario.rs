//! What runs on the host when it dies, and how it dies.

mod in_place;

use serde::{Deserialize, Serialize};

use crate::flavours;
use crate::guest::Guest;
use crate::machine::Hardware;

/// How the host dies.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq, Eq, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Death {
    /// `echo c > /proc/sysrq-trigger`.
    Sysrq,
    /// An NMI from outside, with `kernel.unknown_nmi_panic`.
    Nmi,
    /// It does not die: it is paused, and QEMU dumps its memory from outside.
    Paused,
}

/// One dump file and makedumpfile's options for it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DumpFile {
    /// File name.
    pub name: String,
    /// makedumpfile's options, or `cp`, or for a paused host QEMU's format (`elf`,
    /// `kdump-zlib`).
    pub options: String,
}

impl DumpFile {
    /// A dump file of that name, made with those options.
    #[must_use]
    pub fn new(name: &str, options: &str) -> Self {
        Self {
            name: name.into(),
            options: options.into(),
        }
    }
}

/// A host, what runs on it, and its end.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Scenario {
    /// What people call it.
    pub name: String,
    /// The host's machine.
    pub hardware: Hardware,
    /// CPUs of the host after the reboot. One: with two, TCG now and then
    /// resets a guest or loses an interrupt, which would look like a bad restore.
    pub reboot_cpus: u32,
    /// The guests.
    pub guests: Vec<Guest>,
    /// PID of the ordinary program, where it runs.
    pub process: Option<u32>,
    /// The keeper (scripts/keeper) is loaded before anything starts.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub keeper: bool,
    /// MiB of a disk of the host, with the serial number `swap`; 0: there is none.
    #[serde(default, skip_serializing_if = "is_none")]
    pub swap_mib: u64,
    /// The capture kernel brings the host's own root up, with these words on its command line; it
    /// dumps nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capture_host: Option<String>,
    /// How the host dies.
    pub death: Death,
    /// What is dumped; the first is the main one.
    pub dumps: Vec<DumpFile>,
    /// Lines that each guest and the program must have printed.
    pub warm_up: usize,
    /// Then up to so many milliseconds more.
    pub random_ms: u64,
    /// Decides how many, and tells runs of one scenario apart.
    pub seed: u64,
}

/// A seed that no crash had before.
pub(crate) fn unique_seed(number: u64) -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |now| now.as_secs()) * 1000 + number
}

/// The dump file that every scenario has.
pub const MAIN_DUMP: &str = "hostdump";
/// `/proc/vmcore` itself, where a scenario has it: all of the memory.
pub const WHOLE_DUMP: &str = "vmcore";

fn is_none(mib: &u64) -> bool {
    *mib == 0
}

impl Scenario {
    /// One of the scenarios that the lab knows, by its name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        let microvm = flavours::microvm().numbered(1);
        let pc = flavours::pc().numbered(2);
        let base = Self {
            name: name.to_owned(),
            hardware: Hardware::default(),
            reboot_cpus: 1,
            guests: vec![],
            process: None,
            keeper: false,
            swap_mib: 0,
            capture_host: None,
            death: Death::Sysrq,
            dumps: vec![DumpFile::new(MAIN_DUMP, "-c -d 17")],
            warm_up: 20,
            random_ms: 5000,
            seed: 0,
        };
        let process = Some(4911);
        // Its vCPU is in guest mode nearly always.
        let busy = Guest {
            simd: "busy".into(),
            ..microvm.clone()
        };
        if let Some(scenario) = in_place::named(name, &base) {
            return Some(scenario);
        }
        Some(match name {
            "main" => Self {
                guests: vec![microvm, pc],
                process,
                ..base
            },
            "main-nmi" => Self {
                guests: vec![microvm, pc],
                process,
                death: Death::Nmi,
                ..base
            },
            "process" => Self { process, ..base },
            "formats" => Self {
                guests: vec![microvm],
                process,
                // The other formats are made of `vmcore` outside, where it is
                // quicker: see tests/lab_formats.rs.
                dumps: [
                    (MAIN_DUMP, "-c -d 17"),
                    ("lzo", "-l -d 17"),
                    ("elf", "-E -d 17"),
                    ("flat-elf", "-F -E -d 17"),
                    ("d31", "-c -d 31"),
                    (WHOLE_DUMP, "cp"),
                ]
                .map(|(name, options)| DumpFile::new(name, options))
                .into(),
                ..base
            },
            "keeper" | "no-keeper" => Self {
                guests: vec![busy],
                keeper: name == "keeper",
                death: Death::Nmi,
                ..base
            },
            "paused-busy" => Self {
                guests: vec![busy],
                death: Death::Paused,
                dumps: vec![DumpFile::new(MAIN_DUMP, "elf")],
                ..base
            },
            "paused" => Self {
                guests: vec![microvm],
                process,
                death: Death::Paused,
                dumps: vec![
                    DumpFile::new(MAIN_DUMP, "elf"),
                    DumpFile::new("flat", "kdump-zlib"),
                ],
                ..base
            },
            "dozen" => Self {
                hardware: Hardware {
                    cpus: 1,
                    memory_mib: 2560,
                    ..Hardware::default()
                },
                guests: (1..=12).map(flavours::one_of_a_dozen).collect(),
                warm_up: 5,
                ..base
            },
            "disks" | "disks-images" | "disks-xfs" | "disks-devices" => Self {
                hardware: Hardware {
                    cpus: 1,
                    memory_mib: 2048,
                    ..Hardware::default()
                },
                guests: flavours::several_disks(name)
                    .iter()
                    .zip(1..)
                    .map(|(flavour, n)| Some(flavours::named(flavour)?.numbered(n)))
                    .collect::<Option<_>>()?,
                warm_up: 8,
                ..base
            },
            "memory" => Self {
                hardware: Hardware {
                    cpus: 1,
                    memory_mib: 2048,
                    ..Hardware::default()
                },
                guests: ["memfd-huge", "hugetlbfs-private", "tmpfs", "ksm"]
                    .iter()
                    .zip(1..)
                    .map(|(flavour, n)| Some(flavours::named(flavour)?.numbered(n)))
                    .collect::<Option<_>>()?,
                warm_up: 8,
                ..base
            },
            flavour => {
                let guest = flavours::named(flavour)?.numbered(1);
                let hardware = Hardware::default();
                Self {
                    hardware: Hardware {
                        memory_mib: hardware.memory_mib.max(guest.host_memory_mib),
                        ..hardware
                    },
                    guests: vec![guest],
                    ..base
                }
            }
        })
    }

    /// The names that [`Scenario::named`] knows, and what each is for.
    /// The name of a flavour of guests is one such guest alone.
    pub const NAMES: [(&str, &str); 22] = [
        (
            "main",
            "a microvm, a pc with 2 vCPUs and a disk, the program; sysrq-c",
        ),
        ("main-nmi", "the same, killed by an NMI"),
        ("process", "the ordinary program alone"),
        ("dozen", "twelve small guests on one host"),
        (
            "in-place",
            "a microvm on a host whose capture kernel is a host (`lab capture`)",
        ),
        ("in-place-four", "four guests on such a host"),
        (
            "in-place-huge",
            "three guests in pages of 1 GiB and 2 MiB on such a host",
        ),
        (
            "in-place-kinds",
            "guests with THP, KSM, swap, a helper, native AIO, vhost, io_uring on such a host",
        ),
        (
            "in-place-swapped",
            "a guest with pages on a swap disk on such a host",
        ),
        (
            "in-place-order",
            "four guests on such a host whose capture kernel has two CPUs and room for two",
        ),
        (
            "in-place-256",
            "a guest whose 256 MiB the host has all touched; or in-place-2048",
        ),
        (
            "saved-256",
            "the same on a host that saves a dump; or saved-2048",
        ),
        ("memory", "guests whose memory is made of different things"),
        (
            "disks",
            "guests whose disks are written to by threads, by native AIO, from an iothread, through",
        ),
        (
            "disks-images",
            "guests on SCSI, qcow2, snapshots, several disks",
        ),
        ("disks-xfs", "guests whose images are on xfs"),
        ("disks-devices", "guests on block devices of the host"),
        (
            "formats",
            "one crash in several formats and levels, and as it is",
        ),
        (
            "keeper",
            "a guest in guest mode on a host with the keeper; an NMI",
        ),
        ("no-keeper", "the same without the keeper"),
        ("paused", "a paused host dumped by QEMU from outside"),
        (
            "paused-busy",
            "the same with a guest in guest mode, and the CPUs' registers",
        ),
    ];

    /// Milliseconds to wait after the warm-up: spread over `random_ms` by the
    /// seed.
    #[must_use]
    pub fn delay_ms(&self) -> u64 {
        // Fibonacci hashing: neighbouring seeds land far apart.
        let spread = self
            .seed
            .wrapping_add(1)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            >> 32;
        (spread * self.random_ms) >> 32
    }
}

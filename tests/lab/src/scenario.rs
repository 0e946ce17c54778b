//! What runs on the host when it dies, and how it dies.

use serde::{Deserialize, Serialize};

use crate::machine::Hardware;

/// Machine types of the small guests.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Board {
    /// QEMU's `microvm`: split irqchip, no PCI.
    Microvm,
    /// QEMU's `pc`: in-kernel PIC, IOAPIC and PIT, PCI, ACPI.
    Pc,
    /// QEMU's `q35`.
    Q35,
}

/// One guest, run by Debian's QEMU with KVM.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Guest {
    /// Names its files: `/data/NAME.serial`, `/data/NAME.disk`, `/run/NAME.qmp`.
    pub name: String,
    /// Its machine type.
    pub board: Board,
    /// Its vCPUs.
    pub cpus: u32,
    /// Its memory, MiB.
    pub memory_mib: u32,
    /// Its virtio disk, MiB; 0 for none.
    pub disk_mib: u32,
    /// PID of its VMM.
    pub pid: u32,
    /// `duty`, `busy` or `off`: see guest-init.
    pub simd: String,
}

impl Guest {
    /// The VMM's command line. Everything that grows is on the data disk.
    #[must_use]
    pub fn command_line(&self) -> String {
        let Self {
            name,
            cpus,
            memory_mib,
            simd,
            ..
        } = self;
        let board = match self.board {
            Board::Microvm => "microvm",
            Board::Pc => "pc",
            Board::Q35 => "q35",
        };
        let mut line = format!(
            "qemu-system-x86_64 -enable-kvm -name {name} -M {board} -cpu host -smp {cpus} \
             -m {memory_mib}M -nodefaults -no-user-config -display none \
             -kernel /boot/vmlinuz -initrd /boot/guest.initrd \
             -append 'console=ttyS0 quiet loglevel=1 rdinit=/init lab.simd={simd}' \
             -chardev file,id=serial0,path=/data/{name}.serial -serial chardev:serial0 \
             -qmp unix:/run/{name}.qmp,server=on,wait=off"
        );
        if self.disk_mib > 0 {
            let kind = match self.board {
                Board::Microvm => "virtio-blk-device",
                Board::Pc | Board::Q35 => "virtio-blk-pci",
            };
            line += &format!(
                " -drive if=none,id=disk0,file=/data/{name}.disk,format=raw,cache=writeback \
                 -device {kind},drive=disk0"
            );
        }
        line
    }
}

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

/// The dump file that every scenario has.
pub const MAIN_DUMP: &str = "hostdump";
/// `/proc/vmcore` itself, where a scenario has it: all of the memory.
pub const WHOLE_DUMP: &str = "vmcore";

impl Scenario {
    /// One of the scenarios that the lab knows, by its name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        let microvm = Guest {
            name: "g1".into(),
            board: Board::Microvm,
            cpus: 1,
            memory_mib: 160,
            disk_mib: 0,
            pid: 4711,
            simd: "duty".into(),
        };
        let pc = Guest {
            name: "g2".into(),
            board: Board::Pc,
            cpus: 2,
            disk_mib: 16,
            pid: 4811,
            ..microvm.clone()
        };
        let base = Self {
            name: name.to_owned(),
            hardware: Hardware::default(),
            reboot_cpus: 1,
            guests: vec![],
            process: None,
            death: Death::Sysrq,
            dumps: vec![DumpFile::new(MAIN_DUMP, "-c -d 17")],
            warm_up: 20,
            random_ms: 5000,
            seed: 0,
        };
        let process = Some(4911);
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
            "microvm" => Self {
                guests: vec![microvm],
                ..base
            },
            "pc" => Self {
                guests: vec![pc],
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
            _ => return None,
        })
    }

    /// The names that [`Scenario::named`] knows, and what each is for.
    pub const NAMES: [(&str, &str); 7] = [
        (
            "main",
            "a microvm, a pc with 2 vCPUs and a disk, the program; sysrq-c",
        ),
        ("main-nmi", "the same, killed by an NMI"),
        ("microvm", "one microvm guest"),
        ("pc", "one pc guest with 2 vCPUs and a disk"),
        ("process", "the ordinary program alone"),
        (
            "formats",
            "one crash in several formats and levels, and as it is",
        ),
        ("paused", "a paused host dumped by QEMU from outside"),
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

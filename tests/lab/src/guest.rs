//! One guest of the lab's host: what it is, and how its VMM is called.

use serde::{Deserialize, Serialize};

use crate::phase::Phase;

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

impl Board {
    /// QEMU's name of it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Microvm => "microvm",
            Self::Pc => "pc",
            Self::Q35 => "q35",
        }
    }

    /// The name of a virtio device on its bus: `virtio-blk` and so on.
    #[must_use]
    pub fn device(self, kind: &str) -> String {
        match self {
            Self::Microvm => format!("{kind}-device"),
            Self::Pc | Self::Q35 => format!("{kind}-pci"),
        }
    }
}

/// Debian 12's QEMU, on the host's PATH.
pub const QEMU: &str = "qemu-system-x86_64";

/// Debian 13's QEMU, with its own libraries, on Debian 12's host.
pub const NEWER_QEMU: &str = "/opt/newer/ld-linux-x86-64.so.2 --library-path /opt/newer \
                              /opt/newer/qemu-system-x86_64";

/// One guest, run with KVM by a QEMU or by another VMM.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct Guest {
    /// Names its files: `/data/NAME.serial`, `/data/NAME.disk`, `/run/NAME.qmp`.
    pub name: String,
    /// What is special about it, in tables: see [`crate::flavours`].
    pub flavour: String,
    /// The VMM's program, with what comes before all options.
    pub vmm: String,
    /// The whole command line, where it is not a QEMU's; `{name}` in it is the
    /// guest's name. Else empty.
    pub other_vmm: String,
    /// Its machine type.
    pub board: Board,
    /// What follows the machine type: `,memory-backend=ram0`.
    pub board_options: String,
    /// Its vCPUs.
    pub cpus: u32,
    /// Its memory, MiB.
    pub memory_mib: u32,
    /// Its disk `/data/NAME.disk`, MiB; 0 for none. It is the guest's first.
    pub disk_mib: u32,
    /// Options of the disk's `-drive`: its format and cache mode.
    pub drive: String,
    /// Further options; `{name}` in them is the guest's name.
    pub options: String,
    /// Further words on its kernel's command line.
    pub append: String,
    /// A shell command run on the host once, before the guest starts.
    pub prepare: String,
    /// A shell command run at every boot of the host, before the guest starts
    /// or is restored: what an administrator's configuration would do.
    pub host_setup: String,
    /// What its host must have, MiB; 0 for what every host has.
    pub host_memory_mib: u32,
    /// A disk of the host for it alone, MiB, whose serial number is the guest's
    /// name; 0 for none.
    pub host_disk_mib: u32,
    /// A shell command run on the host before it is turned off in the end, when
    /// all VMMs have ended: it makes `/data/NAME.disk`, for the judge, of disks
    /// that are not files of blocks on the data disk.
    pub collect: String,
    /// What it is in the middle of when the host dies.
    pub phase: Phase,
    /// PID of its VMM.
    pub pid: u32,
    /// `duty`, `busy` or `off`: see guest-init.
    pub simd: String,
}

impl Default for Guest {
    /// A microvm with one vCPU and no disk.
    fn default() -> Self {
        Self {
            name: "g1".into(),
            flavour: "microvm".into(),
            vmm: QEMU.into(),
            other_vmm: String::new(),
            board: Board::Microvm,
            board_options: String::new(),
            cpus: 1,
            memory_mib: 160,
            disk_mib: 0,
            drive: "format=raw,cache=writeback".into(),
            options: String::new(),
            append: String::new(),
            prepare: String::new(),
            host_setup: String::new(),
            host_memory_mib: 0,
            host_disk_mib: 0,
            collect: String::new(),
            phase: Phase::Running,
            pid: 4711,
            simd: "duty".into(),
        }
    }
}

impl Guest {
    /// The same as the host's guest number `n`, counted from 1: its name and
    /// its PID.
    #[must_use]
    pub fn numbered(self, n: u32) -> Self {
        Self {
            name: format!("g{n}"),
            pid: 4611 + 100 * n,
            ..self
        }
    }

    /// The VMM's command line. Everything that grows is on the data disk.
    #[must_use]
    pub fn command_line(&self) -> String {
        if !self.other_vmm.is_empty() {
            return self.named(&self.other_vmm);
        }
        let Self {
            name,
            vmm,
            board_options,
            cpus,
            memory_mib,
            simd,
            append,
            drive,
            ..
        } = self;
        let board = self.board.name();
        let mut line = format!(
            "{vmm} -enable-kvm -name {name} -M {board}{board_options} -cpu host -smp {cpus} \
             -m {memory_mib}M -nodefaults -no-user-config -display none \
             -kernel /boot/vmlinuz -initrd /boot/guest.initrd \
             -append 'console=ttyS0 quiet loglevel=1 rdinit=/init lab.simd={simd} {append}' \
             -chardev file,id=serial0,path=/data/{name}.serial -serial chardev:serial0 \
             -qmp unix:/run/{name}.qmp,server=on,wait=off"
        );
        if self.disk_mib > 0 {
            let device = self.board.device("virtio-blk");
            line += &format!(
                " -drive if=none,id=disk0,file=/data/{name}.disk,{drive} \
                 -device {device},drive=disk0"
            );
        }
        if !self.options.is_empty() {
            line += " ";
            line += &self.named(&self.options);
        }
        line
    }

    /// A shell function `vmm` that prints the /proc directory of its QEMU on the
    /// host, and fails when there is none.
    #[must_use]
    pub fn vmm_function(name: &str) -> String {
        // In brackets, so that the search does not find its own command line.
        let (first, rest) = name.split_at(1);
        format!(
            "vmm() {{ for c in /proc/[0-9]*/cmdline; do \
               tr '\\0' ' ' < $c 2>/dev/null | grep -q -e '-name [{first}]{rest} ' && \
               echo ${{c%/cmdline}} && return 0; \
             done; return 1; }}; "
        )
    }

    /// What is done once on the host before the guest starts.
    #[must_use]
    pub fn preparation(&self) -> Option<String> {
        (!self.prepare.is_empty()).then(|| self.named(&self.prepare))
    }

    /// What is done at every boot of the host.
    #[must_use]
    pub fn setup_at_boot(&self) -> Option<String> {
        (!self.host_setup.is_empty()).then(|| self.named(&self.host_setup))
    }

    /// What is done on the host in the end.
    #[must_use]
    pub fn collection(&self) -> Option<String> {
        (!self.collect.is_empty()).then(|| self.named(&self.collect))
    }

    /// Whether its disk is a plain file of blocks.
    #[must_use]
    pub fn has_raw_disk(&self) -> bool {
        self.disk_mib > 0 && self.drive.contains("format=raw")
    }

    /// Whether the judge can read its disk's blocks in the end.
    #[must_use]
    pub fn is_disk_judged(&self) -> bool {
        self.has_raw_disk() || !self.collect.is_empty()
    }

    /// The image of its own disk of the host, in a dump's directory.
    #[must_use]
    pub fn host_disk(&self) -> Option<String> {
        (self.host_disk_mib > 0).then(|| format!("{}.host.img", self.name))
    }

    fn named(&self, text: &str) -> String {
        text.replace("{name}", &self.name)
    }
}

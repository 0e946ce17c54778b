//! The lab's host as a machine: one QEMU that emulates an AMD CPU with SVM, so
//! that a real Linux with real `kvm_amd` runs in it wherever this runs.

use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::agent::Agent;
use crate::images::Images;
use crate::qmp::Qmp;

/// How the host's machine is made.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct Hardware {
    /// CPUs of the host.
    pub cpus: u32,
    /// All CPUs in one thread of QEMU, in turn.
    pub one_thread: bool,
    /// Memory of the host, MiB.
    pub memory_mib: u32,
    /// Five-level paging, as `-cpu max` has it.
    pub five_levels: bool,
    /// Kept for the capture kernel, MiB; 64 is too little for it to boot.
    pub crashkernel_mib: u32,
    /// A UNIX socket at which another machine is: frames of Ethernet, each behind its length in 4
    /// bytes. The host's own address there is [`NETWORK_CARD`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<PathBuf>,
    /// It waits at that socket for the other machine, again and again, and its address is
    /// [`NEIGHBOURS_CARD`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub listens: bool,
}

/// The hardware address of the host's network card, the same at every boot.
pub const NETWORK_CARD: &str = "52:54:00:77:00:02";
/// That of a host at the other end of the same socket.
pub const NEIGHBOURS_CARD: &str = "52:54:00:77:00:03";

impl Default for Hardware {
    fn default() -> Self {
        Self {
            cpus: 2,
            one_thread: false,
            memory_mib: 1024,
            five_levels: true,
            crashkernel_mib: 160,
            network: None,
            listens: false,
        }
    }
}

impl Hardware {
    /// The host kernel's command line.
    ///
    /// `tsc=reliable`: without it Linux takes the TSCs of an AMD machine with
    /// two CPUs and no invariant TSC for unsynchronised, never refines their
    /// frequency, and two boots differ by some 600 ppm, more than KVM takes
    /// without scaling. Real hosts have neither fault.
    #[must_use]
    pub fn kernel_options(&self) -> String {
        format!(
            "console=ttyS0 quiet loglevel=4 crashkernel={}M panic=1 tsc=reliable",
            self.crashkernel_mib
        )
    }
}

/// A disk of the host.
pub struct Disk {
    /// By which the host finds it.
    pub serial: String,
    /// Its place on the PCI bus, where it must have the same at every boot,
    /// whatever else is there.
    pub slot: Option<usize>,
    /// Raw image.
    pub image: PathBuf,
    /// Writes are thrown away when the machine ends.
    pub throw_away: bool,
}

/// A running host. It is killed when this is dropped, and by the kernel when
/// the thread that started it ends.
pub struct Machine {
    child: Child,
    /// Speaks to the machine itself (not to a guest in it).
    pub qmp: Qmp,
    /// Speaks to PID 1 of the host.
    pub agent: Agent,
    /// All that the host said on its console.
    pub console: PathBuf,
}

impl Machine {
    /// Starts a host; its console and what its QEMU says go into `dir`.
    pub fn start(images: &Images, hardware: &Hardware, disks: &[Disk], dir: &Path) -> Result<Self> {
        let console = dir.join("console.log");
        let (qmp_ours, qmp_theirs) = UnixStream::pair()?;
        let (agent_ours, agent_theirs) = UnixStream::pair()?;
        let said = dir.join("qemu.log");
        let mut command = Command::new("qemu-system-x86_64");
        command
            .args([
                "-accel",
                if hardware.one_thread {
                    "tcg,thread=single"
                } else {
                    "tcg,thread=multi"
                },
                "-nodefaults",
                "-no-user-config",
            ])
            .args(["-display", "none", "-no-reboot", "-cpu"])
            .arg(format!(
                "max,+svm,+npt{}",
                if hardware.five_levels { "" } else { ",-la57" }
            ))
            .args(["-smp", &hardware.cpus.to_string()])
            .args(["-m", &format!("{}M", hardware.memory_mib)])
            .arg("-kernel")
            .arg(&images.kernel)
            .arg("-initrd")
            .arg(&images.initrd)
            .args(["-append", &hardware.kernel_options()])
            .args(["-device", "vmcoreinfo"])
            .args(["-serial", &format!("file:{}", console.display())])
            .args([
                "-chardev",
                &format!("socket,id=qmp,fd={}", qmp_theirs.as_raw_fd()),
                "-mon",
                "chardev=qmp,mode=control",
                "-device",
                "virtio-serial-pci",
                "-chardev",
                &format!("socket,id=lab,fd={}", agent_theirs.as_raw_fd()),
                "-device",
                "virtserialport,chardev=lab,name=lab.control",
            ]);
        if let Some(peer) = &hardware.network {
            let socket = format!("addr.type=unix,addr.path={}", peer.display());
            let (server, card) = match hardware.listens {
                true => ("on", NEIGHBOURS_CARD),
                false => ("off", NETWORK_CARD),
            };
            command.args([
                "-netdev",
                &format!("stream,id=network,server={server},{socket}"),
                "-device",
                &format!("virtio-net-pci,netdev=network,mac={card},romfile=,addr=0x1d"),
            ]);
        }
        let root = Disk {
            serial: "root".into(),
            slot: None,
            image: images.root.clone(),
            throw_away: true,
        };
        for disk in std::iter::once(&root).chain(disks) {
            let (serial, image) = (&disk.serial, disk.image.display());
            let slot = disk.slot.map_or(String::new(), |n| format!(",addr={n:#x}"));
            let snapshot = if disk.throw_away { "on" } else { "off" };
            command.args([
                "-drive",
                &format!("if=none,id={serial},file={image},format=raw,snapshot={snapshot}"),
                "-device",
                &format!("virtio-blk-pci,drive={serial},serial={serial}{slot}"),
            ]);
        }
        command
            .stdin(Stdio::null())
            .stdout(std::fs::File::create(&said)?)
            .stderr(std::fs::OpenOptions::new().append(true).open(&said)?);
        let inherited = [qmp_theirs.as_raw_fd(), agent_theirs.as_raw_fd()];
        // SAFETY: only async-signal-safe system calls between fork and exec.
        unsafe { command.pre_exec(move || in_child(&inherited)) };
        let child = command
            .spawn()
            .context("qemu-system-x86_64 (run scripts/setup?)")?;
        drop((qmp_theirs, agent_theirs));
        let mut machine = Self {
            child,
            agent: Agent::new(agent_ours, dir)?,
            qmp: Qmp::new(qmp_ours)?,
            console,
        };
        machine.qmp.greet().with_context(|| machine.words(&said))?;
        Ok(machine)
    }

    /// Waits until the machine has turned itself off.
    pub fn wait_off(&mut self, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        while Instant::now() < deadline {
            if self.child.try_wait()?.is_some() {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        bail!(
            "the host has not turned off within {} s; its console ends:\n{}",
            limit.as_secs(),
            self.console_end()
        )
    }

    /// True while QEMU runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// `error`, and what the host's CPUs were doing then, as its QEMU says: for
    /// a host that answers no more.
    pub fn explain(&mut self, error: anyhow::Error) -> anyhow::Error {
        let mut seen = String::new();
        for words in ["info status", "info registers -a", "info lapic", "info irq"] {
            let said = self
                .qmp
                .command("human-monitor-command", json!({"command-line": words}));
            let said = match &said {
                Ok(said) => said.as_str().unwrap_or_default().replace('\r', ""),
                Err(error) => format!("{error:#}"),
            };
            seen += &format!("({words})\n{said}\n");
        }
        let file = self.console.with_file_name("cpus.txt");
        match std::fs::write(&file, seen) {
            Ok(()) => error.context(format!("the host's CPUs then: {}", file.display())),
            Err(_) => error,
        }
    }

    /// The last lines of the console.
    #[must_use]
    pub fn console_end(&self) -> String {
        let text = std::fs::read(&self.console).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(25)..].join("\n")
    }

    /// What QEMU said on its way out.
    fn words(&self, said: &Path) -> String {
        let text = std::fs::read_to_string(said).unwrap_or_default();
        format!("QEMU: {}", text.trim())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// In the forked child: the kernel kills it with its parent, and the sockets
/// stay open over exec.
fn in_child(inherited: &[RawFd]) -> std::io::Result<()> {
    // SAFETY: plain system calls on descriptors that are open here.
    unsafe {
        if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
            return Err(std::io::Error::last_os_error());
        }
        for fd in inherited {
            if libc::fcntl(*fd, libc::F_SETFD, 0) != 0 {
                return Err(std::io::Error::last_os_error());
            }
        }
    }
    Ok(())
}

//! A small VMM of the rust-vmm crates, for what Firecracker and Cloud
//! Hypervisor hold and QEMU does not: two descriptors and two mappings of each
//! vCPU, some eighty eventfds, timerfds, edge-triggered and one-shot watches,
//! socketpairs with unread data and open files in them, seccomp filters that
//! differ from thread to thread, an io_uring with its kernel threads.
//!
//! ```text
//! stand-in NAME [--cpus N] [--memory MIB] [--shared] [--disk] [--io-uring [--in-flight]]
//!          [--simd HOW] [--append WORDS]
//! stand-in ask SOCKET QUESTION
//! ```
//!
//! The guest is the lab's; its serial port is `/data/NAME.serial`, its disk
//! `/data/NAME.disk`, the API `/run/NAME.api`, and what the VMM says of its
//! own holdings is in `/data/NAME.holdings`.

mod acpi;
mod api;
mod disk;
mod guards;
mod holdings;
mod machine;
mod pairs;
mod ring;
mod tokens;
mod vcpu;
mod watch;

use std::fs::File;
use std::os::unix::net::UnixListener;
use std::sync::{Arc, Mutex};

use kvm_ioctls::{IoEventAddress, NoDatamatch};
use vm_superio::serial::Serial;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use acpi::{DISK_GSI, DISK_WINDOW, SCI_GSI};
use disk::{NOTIFY, Server, Window};
use holdings::{Shared, spawn};
use machine::{Boot, Machine, Result};
use ring::{Endless, Ring};
use vcpu::{Bus, Line, Power};

const KERNEL: &str = "/boot/vmlinuz";
const INITRD: &str = "/boot/guest.initrd";
/// The serial port's interrupt.
const COM1_GSI: u32 = 4;
/// Interrupts that no device of the guest has: their eventfds are there as
/// those of a VMM's other devices would be.
const SPARE_GSIS: std::ops::Range<u32> = 16..22;
/// Where the guest writes nothing: as the kicks of other devices.
const SPARE_KICKS: u64 = 0xd001_0000;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let done = match args
        .iter()
        .map(String::as_str)
        .collect::<Vec<_>>()
        .as_slice()
    {
        ["ask", socket, question] => api::ask(socket, question)
            .map(|answer| print!("{answer}"))
            .map_err(Into::into),
        [name, options @ ..] => start(name, options),
        [] => Err("usage: stand-in NAME [OPTION…]; see its source".into()),
    };
    if let Err(error) = done {
        eprintln!("stand-in: {error}");
        std::process::exit(1);
    }
}

fn start(name: &str, options: &[&str]) -> Result<()> {
    let has = |flag: &str| options.contains(&flag);
    let value = |flag: &str| {
        let at = options.iter().position(|option| *option == flag)?;
        options.get(at + 1).copied()
    };
    let command_line = format!(
        "console=ttyS0 quiet loglevel=1 rdinit=/init pci=off lab.simd={} {}",
        value("--simd").unwrap_or("duty"),
        value("--append").unwrap_or("")
    );
    let machine = Machine::new(&Boot {
        kernel: KERNEL,
        initrd: INITRD,
        command_line: &command_line,
        cpus: value("--cpus").unwrap_or("2").parse()?,
        memory_mib: value("--memory").unwrap_or("160").parse()?,
        shared: has("--shared"),
    })?;
    let event = || EventFd::new(EFD_NONBLOCK);

    let irqfd = |gsi: u32| -> Result<EventFd> {
        let line = event()?;
        machine.vm.register_irqfd(&line, gsi)?;
        Ok(line)
    };
    let com1 = irqfd(COM1_GSI)?;
    let sci = irqfd(SCI_GSI)?;
    let spare: Result<Vec<EventFd>> = SPARE_GSIS.map(irqfd).collect();
    let spare = spare?;
    for (fd, at) in spare.iter().zip((SPARE_KICKS..).step_by(0x1000)) {
        let kick = IoEventAddress::Mmio(at);
        machine.vm.register_ioevent(fd, &kick, NoDatamatch)?;
        holdings::keep(fd)?;
    }

    let shared = Shared::new()?;
    let disk = if has("--disk") {
        let file = ring::open(&format!("/data/{name}.disk"))?;
        let window = Window::new(file.metadata()?.len())?;
        // Blocking: its thread sleeps in the read.
        let kick = EventFd::new(0)?;
        let at = IoEventAddress::Mmio(DISK_WINDOW + NOTIFY);
        machine.vm.register_ioevent(&kick, &at, NoDatamatch)?;
        let server = Server {
            window: Arc::clone(&window),
            file,
            memory: machine.memory.clone(),
            kick,
            interrupt: irqfd(DISK_GSI)?,
            ring: has("--io-uring").then(Ring::new).transpose()?,
        };
        let shared = Arc::clone(&shared);
        spawn("_disk0_q0", move || {
            if let Err(error) = server.run(&shared.probe) {
                eprintln!("stand-in: disk: {error}");
            }
        })?;
        Some(window)
    } else {
        None
    };
    let _endless = has("--in-flight").then(Endless::new).transpose()?;

    let serial = File::create(format!("/data/{name}.serial"))?;
    let bus = Arc::new(Bus {
        serial: Mutex::new(Serial::new(Line(com1), serial)),
        disk,
        power: Power::default(),
        exit: event()?,
    });
    let listener = UnixListener::bind(format!("/run/{name}.api"))?;
    {
        let (bus, shared) = (Arc::clone(&bus), Arc::clone(&shared));
        spawn("api", move || {
            api::serve(&listener, &bus, &sci, &shared.probe);
        })?;
    }
    shared.start(File::create(format!("/data/{name}.holdings"))?)?;
    for (index, descriptors) in machine.vcpus.into_iter().enumerate() {
        let (bus, shared) = (Arc::clone(&bus), Arc::clone(&shared));
        spawn(&format!("vcpu{index}"), move || {
            vcpu::run(descriptors, &bus, &shared.probe);
        })?;
    }
    let end = watch::Epoll::new()?;
    end.add(&bus.exit, watch::LEVEL, 0)?;
    while end.wait(500).is_empty() {
        shared.look_lazily();
    }
    let _ = std::fs::remove_file(format!("/run/{name}.api"));
    std::process::exit(0);
}

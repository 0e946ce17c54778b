//! vCPU threads, and the devices that they speak to: a serial port, ACPI's
//! power registers, the disk's window.

use std::fs::File;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, Mutex};

use kvm_ioctls::{VcpuExit, VcpuFd};
use vm_superio::Trigger;
use vm_superio::serial::{NoEvents, Serial};
use vmm_sys_util::eventfd::EventFd;

use crate::acpi::{DISK_WINDOW, DISK_WINDOW_LEN, PM1_CONTROL, PM1_EVENT};
use crate::disk::Window;
use crate::guards::{Guard, Probe};

const COM1: u16 = 0x3f8;
/// `PM1_CNT.SCI_EN`, `PM1_CNT.SLP_EN`.
const SCI_ENABLED: u16 = 1;
const SLEEP_NOW: u16 = 1 << 13;
/// `PM1_STS.PWRBTN_STS`.
const POWER_BUTTON: u16 = 1 << 8;

/// An irqfd as the trigger of an interrupt.
pub struct Line(pub EventFd);

impl Trigger for Line {
    type E = std::io::Error;

    fn trigger(&self) -> std::io::Result<()> {
        self.0.write(1)
    }
}

/// What all vCPUs see.
pub struct Bus {
    pub serial: Mutex<Serial<Line, NoEvents, File>>,
    pub disk: Option<Arc<Window>>,
    pub power: Power,
    /// Written when the guest has turned itself off.
    pub exit: EventFd,
}

/// ACPI's PM1 registers.
#[derive(Default)]
pub struct Power {
    status: AtomicU16,
    enabled: AtomicU16,
    off: AtomicBool,
}

impl Power {
    /// Presses the button; the caller raises the interrupt.
    pub fn press(&self) {
        self.status.fetch_or(POWER_BUTTON, Ordering::SeqCst);
    }

    fn read(&self, port: u16) -> u16 {
        match port {
            PM1_EVENT => self.status.load(Ordering::SeqCst),
            PM1_CONTROL => SCI_ENABLED,
            _ => self.enabled.load(Ordering::SeqCst),
        }
    }

    /// Whether the guest turns off.
    fn write(&self, port: u16, value: u16) -> bool {
        match port {
            // What is written is cleared.
            PM1_EVENT => self.status.fetch_and(!value, Ordering::SeqCst),
            PM1_CONTROL => {
                self.off.fetch_or(value & SLEEP_NOW != 0, Ordering::SeqCst);
                0
            }
            _ => self.enabled.swap(value, Ordering::SeqCst),
        };
        self.off.load(Ordering::SeqCst)
    }
}

/// Runs a vCPU for ever, by its two descriptors in turn.
pub fn run(mut descriptors: [VcpuFd; 2], bus: &Bus, probe: &Probe) {
    Guard::Vcpu.enter();
    for turn in 0usize.. {
        if turn.is_multiple_of(64) {
            probe.look(Guard::Vcpu);
        }
        match descriptors[turn % 2].run() {
            Ok(VcpuExit::IoOut(port, data)) => {
                if !bus.port_out(port, data) {
                    let _ = bus.exit.write(1);
                    return;
                }
            }
            Ok(VcpuExit::IoIn(port, data)) => bus.port_in(port, data),
            Ok(VcpuExit::MmioRead(address, data)) => bus.read(address, data),
            Ok(VcpuExit::MmioWrite(address, data)) => bus.write(address, data),
            Ok(VcpuExit::Intr) => {}
            Ok(other) => {
                eprintln!("stand-in: a vCPU stopped: {other:?}");
                let _ = bus.exit.write(1);
                return;
            }
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {}
            Err(error) => {
                eprintln!("stand-in: KVM_RUN: {error}");
                let _ = bus.exit.write(1);
                return;
            }
        }
    }
}

impl Bus {
    fn port_out(&self, port: u16, data: &[u8]) -> bool {
        match (port, data) {
            (COM1..0x400, &[byte]) => {
                let mut serial = self.serial.lock().unwrap_or_else(|e| e.into_inner());
                // The file is all there is to tell of a failure.
                let _ = serial.write((port - COM1) as u8, byte);
                true
            }
            (PM1_EVENT..0x606, &[low, high]) => {
                !self.power.write(port & !1, u16::from_le_bytes([low, high]))
            }
            _ => true,
        }
    }

    fn port_in(&self, port: u16, data: &mut [u8]) {
        data.fill(0xff);
        match (port, data) {
            (COM1..0x400, [byte]) => {
                let mut serial = self.serial.lock().unwrap_or_else(|e| e.into_inner());
                *byte = serial.read((port - COM1) as u8);
            }
            (PM1_EVENT..0x606, data) => {
                let value = self.power.read(port & !1).to_le_bytes();
                for (to, from) in data.iter_mut().zip(value) {
                    *to = from;
                }
            }
            _ => {}
        }
    }

    fn read(&self, address: u64, data: &mut [u8]) {
        data.fill(0);
        if let (Some(disk), Some(offset)) = (&self.disk, in_window(address)) {
            disk.read(offset, data);
        }
    }

    fn write(&self, address: u64, data: &[u8]) {
        if let (Some(disk), Some(offset)) = (&self.disk, in_window(address)) {
            disk.write(offset, data);
        }
    }
}

fn in_window(address: u64) -> Option<u64> {
    let offset = address.checked_sub(DISK_WINDOW)?;
    (offset < DISK_WINDOW_LEN).then_some(offset)
}

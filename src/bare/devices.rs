//! What a bare guest finds where its devices were: a serial port, and nothing.

use super::serial::{self, Serial};
use crate::sys::own_vm::Shared;
use serde::Serialize;
use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Arc;

/// COM1, and its interrupt line.
const COM1: u16 = 0x3f8;
const COM1_GSI: u32 = 4;
/// The keyboard controller's command that resets a PC.
const KEYBOARD_COMMAND: u16 = 0x64;
const KEYBOARD_RESET: u8 = 0xfe;
/// The chip set's reset register; bit 2 does it.
const RESET_CONTROL: u16 = 0xcf9;
/// ACPI's PM1a control register, where QEMU's pc and q35 have it; bit 13 with
/// sleep type 0 turns the machine off.
const PM1A_CONTROL: u16 = 0x604;
const SLEEP_ENABLE_AND_TYPE: u16 = 0x3c00;
const POWER_OFF: u16 = 0x2000;

/// Places of devices that are listed; what else is accessed is counted with
/// the last.
const MOST_PLACES: usize = 64;
/// What is kept of the output, for the report. Bytes.
const MOST_KEPT: usize = 64 * 1024;

/// Where the serial port's output goes.
pub type Output = Box<dyn Write + Send>;

/// What the guest asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    PowerOff,
    Reset,
}

/// All devices there are.
pub struct Devices {
    serial: Serial,
    /// The port's interrupt line leads somewhere.
    wired: bool,
    /// As KVM was told last.
    line: bool,
    output: Output,
    /// The output is closed, or cannot be written.
    output_error: Option<std::io::Error>,
    counts: Counts,
}

/// What happened at the devices.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Counts {
    /// Bytes that came out of the serial port.
    pub serial_bytes: u64,
    /// The last of them, as text.
    pub serial_end: String,
    /// Reads and writes of devices that are not there, by their place.
    pub absent_devices: BTreeMap<String, Access>,
    #[serde(skip)]
    kept: Vec<u8>,
}

/// How often a place was accessed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Access {
    pub reads: u64,
    pub writes: u64,
}

impl Devices {
    /// Devices whose serial output goes to `output`. `wired`: the serial port
    /// may raise its interrupt.
    pub fn new(output: Output, wired: bool) -> Self {
        Self {
            wired,
            serial: Serial::default(),
            line: false,
            output,
            output_error: None,
            counts: Counts::default(),
        }
    }

    /// Tells the VM of the serial port's interrupt, where it has changed.
    pub fn interrupt(&mut self, vm: &Arc<Shared>) {
        let line = self.serial.interrupt();
        if self.wired && line != self.line {
            self.line = line;
            vm.irq_line(COM1_GSI, line);
        }
    }

    /// Something was typed.
    pub fn type_in(&mut self, bytes: &[u8], vm: &Arc<Shared>) {
        self.serial.type_in(bytes);
        self.interrupt(vm);
    }

    /// All that was typed has been read.
    pub fn wants_input(&self) -> bool {
        self.serial.wants_input()
    }

    /// Why there can be no output any more.
    pub fn output_error(&mut self) -> Option<std::io::Error> {
        self.output_error.take()
    }

    /// What happened so far.
    pub fn counts(&self) -> Counts {
        Counts {
            serial_end: String::from_utf8_lossy(&self.counts.kept).into_owned(),
            kept: Vec::new(),
            ..self.counts.clone()
        }
    }

    /// Items of `size` bytes go to a port.
    pub fn port_out(
        &mut self,
        port: u16,
        size: usize,
        data: &[u8],
        vm: &Arc<Shared>,
    ) -> Option<Request> {
        let mut request = None;
        for item in data.chunks(size.max(1)) {
            let value = item.iter().rev().fold(0_u32, |v, b| v << 8 | u32::from(*b));
            match port {
                COM1..=0x3ff => {
                    for (register, byte) in (port - COM1..serial::PORTS).zip(item) {
                        if let Some(sent) = self.serial.write(register, *byte) {
                            self.send(sent);
                        }
                        self.interrupt(vm);
                    }
                }
                KEYBOARD_COMMAND if value as u8 == KEYBOARD_RESET => {
                    request = Some(Request::Reset);
                }
                RESET_CONTROL if value & 4 != 0 => request = Some(Request::Reset),
                PM1A_CONTROL if value as u16 & SLEEP_ENABLE_AND_TYPE == POWER_OFF => {
                    request = Some(Request::PowerOff);
                }
                _ => self.absent(format!("port {port:#x}")).writes += 1,
            }
        }
        request
    }

    /// Items of `size` bytes are read from a port.
    pub fn port_in(&mut self, port: u16, size: usize, data: &mut [u8], vm: &Arc<Shared>) {
        data.fill(0xff);
        for item in data.chunks_mut(size.max(1)) {
            match port {
                COM1..=0x3ff => {
                    for (register, byte) in (port - COM1..serial::PORTS).zip(item) {
                        *byte = self.serial.read(register);
                        self.interrupt(vm);
                    }
                }
                _ => self.absent(format!("port {port:#x}")).reads += 1,
            }
        }
    }

    /// A device's memory is read.
    pub fn memory_read(&mut self, address: u64, data: &mut [u8]) {
        data.fill(0xff);
        self.absent(place(address)).reads += 1;
    }

    /// A device's memory is written.
    pub fn memory_write(&mut self, address: u64) {
        self.absent(place(address)).writes += 1;
    }

    fn absent(&mut self, place: String) -> &mut Access {
        let places = &mut self.counts.absent_devices;
        let known = places.len() < MOST_PLACES || places.contains_key(&place);
        places
            .entry(if known { place } else { "others".into() })
            .or_default()
    }

    fn send(&mut self, byte: u8) {
        self.counts.serial_bytes += 1;
        let kept = &mut self.counts.kept;
        // The older half goes, so that it is not moved for each byte.
        if kept.len() >= MOST_KEPT {
            kept.drain(..MOST_KEPT / 2);
        }
        kept.push(byte);
        if self.output_error.is_none() {
            let written = self
                .output
                .write_all(&[byte])
                .and_then(|()| self.output.flush());
            self.output_error = written.err();
        }
    }
}

/// A device's page.
fn place(address: u64) -> String {
    format!("memory {:#x}", address & !0xfff)
}

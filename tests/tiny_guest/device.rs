//! The one device, and what crosses the border between it and a guest.

use crate::programs::FAULT_PORT;
use kvm_bindings::*;
use kvm_ioctls::VcpuExit;

/// What crossed the border between guest and device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    Out { port: u16, data: Vec<u8> },
    In { port: u16, data: Vec<u8> },
    Write { address: u64, data: Vec<u8> },
    Read { address: u64, data: Vec<u8> },
}

impl Event {
    /// Of memory or a port.
    pub fn address(&self) -> u64 {
        match self {
            Event::Out { port, .. } | Event::In { port, .. } => u64::from(*port),
            Event::Write { address, .. } | Event::Read { address, .. } => *address,
        }
    }
}

/// A device whose every answer is another, so that an answer given twice, or
/// one that the guest never got, shows.
#[derive(Default)]
pub struct Device {
    answers: u32,
    pub log: Vec<Event>,
}

impl Device {
    fn answer(&mut self, data: &mut [u8]) -> Vec<u8> {
        for byte in data.iter_mut() {
            self.answers = self
                .answers
                .wrapping_mul(1_664_525)
                .wrapping_add(1_013_904_223);
            *byte = (self.answers >> 24) as u8;
        }
        data.to_vec()
    }

    fn handle(&mut self, exit: VcpuExit) {
        let event = match exit {
            VcpuExit::IoOut(FAULT_PORT, data) => panic!("the guest found fault {data:?}"),
            VcpuExit::IoOut(port, data) => Event::Out {
                port,
                data: data.to_vec(),
            },
            VcpuExit::IoIn(port, data) => Event::In {
                port,
                data: self.answer(data),
            },
            VcpuExit::MmioWrite(address, data) => Event::Write {
                address,
                data: data.to_vec(),
            },
            VcpuExit::MmioRead(address, data) => Event::Read {
                address,
                data: self.answer(data),
            },
            other => panic!("unexpected exit {other:?}; log ends {:?}", self.tail()),
        };
        self.log.push(event);
    }

    fn tail(&self) -> &[Event] {
        &self.log[self.log.len().saturating_sub(3)..]
    }

    /// The bytes written to a port.
    pub fn said(&self, wanted: u16) -> String {
        let bytes = self.log.iter().filter_map(|event| match event {
            Event::Out { port, data } if *port == wanted => Some(data.as_slice()),
            _ => None,
        });
        String::from_utf8_lossy(&bytes.collect::<Vec<_>>().concat()).into_owned()
    }
}

/// Where the log has exits on MSRs.
const MSRS: u64 = 1 << 60;
/// And hypercalls.
const HYPERCALLS: u64 = 1 << 61;

/// Handles an exit.
///
/// # Safety
/// `run` is the start of a vCPU's area, or of a copy of its first two pages,
/// as the kernel wrote it.
pub unsafe fn handle_exit(run: *mut kvm_run, device: &mut Device) {
    // SAFETY: the caller's promise; the exit reason names the union's member,
    // and data_offset lies within the area.
    let exit = unsafe {
        match (*run).exit_reason {
            KVM_EXIT_IO => {
                let io = (*run).__bindgen_anon_1.io;
                let at = run.cast::<u8>().add(io.data_offset as usize);
                let len = usize::from(io.size) * io.count as usize;
                let data = std::slice::from_raw_parts_mut(at, len);
                match u32::from(io.direction) {
                    KVM_EXIT_IO_IN => VcpuExit::IoIn(io.port, data),
                    _ => VcpuExit::IoOut(io.port, data),
                }
            }
            KVM_EXIT_MMIO => {
                let mmio = &mut (*run).__bindgen_anon_1.mmio;
                let data = &mut mmio.data[..mmio.len as usize];
                match mmio.is_write {
                    0 => VcpuExit::MmioRead(mmio.phys_addr, data),
                    _ => VcpuExit::MmioWrite(mmio.phys_addr, data),
                }
            }
            KVM_EXIT_X86_RDMSR => {
                let msr = &mut (*run).__bindgen_anon_1.msr;
                let mut data = [0; 8];
                let address = MSRS | u64::from(msr.index);
                let answer = device.answer(&mut data);
                device.log.push(Event::Read {
                    address,
                    data: answer,
                });
                msr.data = u64::from_le_bytes(data);
                msr.error = 0;
                return;
            }
            KVM_EXIT_X86_WRMSR => {
                let msr = &mut (*run).__bindgen_anon_1.msr;
                device.log.push(Event::Write {
                    address: MSRS | u64::from(msr.index),
                    data: msr.data.to_le_bytes().to_vec(),
                });
                msr.error = 0;
                return;
            }
            KVM_EXIT_HYPERCALL => {
                let call = &mut (*run).__bindgen_anon_1.hypercall;
                let mut data = [0; 8];
                let answer = device.answer(&mut data);
                let [address, pages, attributes, ..] = call.args;
                assert_eq!(pages, attributes + 1, "arguments of the hypercall");
                device.log.push(Event::Read {
                    address: HYPERCALLS | call.nr << 56 | address | pages << 32,
                    data: answer,
                });
                call.ret = u64::from_le_bytes(data);
                return;
            }
            reason => panic!("no exit of a device waits, but reason {reason}"),
        }
    };
    device.handle(exit);
}

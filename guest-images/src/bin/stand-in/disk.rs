//! A virtio disk behind an MMIO window (virtio 1.2, 4.2.2 and 5.2): the queue
//! is kicked by an ioeventfd, served by a thread of its own, and answered by
//! an irqfd.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use virtio_queue::{DescriptorChain, Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

use crate::guards::{Guard, Probe};
use crate::machine::Result;
use crate::ring::Ring;

/// Where the driver says that there is something in the queue.
pub const NOTIFY: u64 = 0x50;

const SECTOR: u64 = 512;
const MAGIC: u32 = 0x7472_6976;
const BLOCK_DEVICE: u32 = 2;
/// VIRTIO_BLK_F_FLUSH, and VIRTIO_F_VERSION_1 in the upper half.
const FEATURES: [u32; 2] = [1 << 9, 1];
const QUEUE_SIZE: u16 = 64;

/// Types of requests.
const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;

/// The registers.
pub struct Window {
    state: Mutex<State>,
    status: AtomicU32,
    interrupt_status: AtomicU32,
    sectors: u64,
}

struct State {
    queue: Queue,
    features_page: u32,
    queue_low: [u32; 3],
}

impl Window {
    /// The window of a disk of that many bytes.
    pub fn new(bytes: u64) -> Result<Arc<Self>> {
        Ok(Arc::new(Self {
            state: Mutex::new(State {
                queue: Queue::new(QUEUE_SIZE)?,
                features_page: 0,
                queue_low: [0; 3],
            }),
            status: AtomicU32::new(0),
            interrupt_status: AtomicU32::new(0),
            sectors: bytes / SECTOR,
        }))
    }

    /// A read of a register, or of the device's configuration.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        let state = self.state.lock().unwrap_or_else(|e| e.into_inner());
        let value = match offset {
            0x000 => MAGIC,
            0x004 => 2,
            0x008 => BLOCK_DEVICE,
            0x00c => u32::from_le_bytes(*b"VMRE"),
            0x010 => FEATURES
                .get(state.features_page as usize)
                .copied()
                .unwrap_or(0),
            0x034 => QUEUE_SIZE.into(),
            0x044 => state.queue.ready().into(),
            0x060 => self.interrupt_status.load(Ordering::SeqCst),
            0x070 => self.status.load(Ordering::SeqCst),
            0x100.. => {
                let bytes = self.sectors.to_le_bytes();
                for (i, to) in data.iter_mut().enumerate() {
                    *to = bytes.get(offset as usize - 0x100 + i).copied().unwrap_or(0);
                }
                return;
            }
            _ => 0,
        };
        for (to, from) in data.iter_mut().zip(value.to_le_bytes()) {
            *to = from;
        }
    }

    /// A write to a register.
    pub fn write(&self, offset: u64, data: &[u8]) {
        let Ok(bytes) = <[u8; 4]>::try_from(data) else {
            return;
        };
        let value = u32::from_le_bytes(bytes);
        let mut state = self.state.lock().unwrap_or_else(|e| e.into_inner());
        match offset {
            0x014 => state.features_page = value,
            0x038 => state.queue.set_size(value as u16),
            0x044 => {
                let [desc, avail, used] = state.queue_low;
                state.queue.set_desc_table_address(Some(desc), Some(0));
                state.queue.set_avail_ring_address(Some(avail), Some(0));
                state.queue.set_used_ring_address(Some(used), Some(0));
                state.queue.set_ready(value != 0);
            }
            0x064 => {
                self.interrupt_status.fetch_and(!value, Ordering::SeqCst);
            }
            0x070 => {
                self.status.store(value, Ordering::SeqCst);
                if value == 0 {
                    state.queue.reset();
                    self.interrupt_status.store(0, Ordering::SeqCst);
                }
            }
            // All memory of this guest is below 4 GiB.
            0x080 => state.queue_low[0] = value,
            0x090 => state.queue_low[1] = value,
            0x0a0 => state.queue_low[2] = value,
            _ => {}
        }
    }
}

/// What serves the queue.
pub struct Server {
    pub window: Arc<Window>,
    pub file: File,
    pub memory: GuestMemoryMmap,
    /// Kicked by the guest.
    pub kick: EventFd,
    /// Interrupts it.
    pub interrupt: EventFd,
    /// By which reads and writes go, where not by pread and pwrite.
    pub ring: Option<Ring>,
}

impl Server {
    /// Serves requests for ever.
    pub fn run(mut self, probe: &Probe) -> Result<()> {
        Guard::Vcpu.enter();
        loop {
            self.kick.read()?;
            probe.look(Guard::Vcpu);
            let mut any = false;
            let window = Arc::clone(&self.window);
            let mut state = window.state.lock().unwrap_or_else(|e| e.into_inner());
            while state.queue.ready() {
                let memory = self.memory.clone();
                let Some(chain) = state.queue.pop_descriptor_chain(&memory) else {
                    break;
                };
                let head = chain.head_index();
                let written = self.serve(chain)?;
                state.queue.add_used(&memory, head, written)?;
                any = true;
            }
            drop(state);
            if any {
                self.window.interrupt_status.fetch_or(1, Ordering::SeqCst);
                self.interrupt.write(1)?;
            }
        }
    }

    /// One request: its header, its data, its status byte.
    fn serve(&mut self, chain: DescriptorChain<&GuestMemoryMmap>) -> Result<u32> {
        let parts: Vec<_> = chain.collect();
        let (Some(header), Some(status)) = (parts.first(), parts.last()) else {
            return Ok(0);
        };
        let kind: u32 = self.memory.read_obj(header.addr())?;
        let sector: u64 = self.memory.read_obj(GuestAddress(header.addr().0 + 8))?;
        let mut at = sector * SECTOR;
        let (mut written, mut good) = (1, true);
        for part in parts.get(1..parts.len() - 1).unwrap_or_default() {
            let len = part.len();
            let mut buffer = vec![0; len as usize];
            match kind {
                IN => {
                    good &= self.transfer(&mut buffer, at, false).is_ok();
                    self.memory.write_slice(&buffer, part.addr())?;
                    written += len;
                }
                OUT => {
                    self.memory.read_slice(&mut buffer, part.addr())?;
                    good &= self.transfer(&mut buffer, at, true).is_ok();
                }
                GET_ID => {
                    self.memory.write_slice(&buffer, part.addr())?;
                    written += len;
                }
                _ => good = false,
            }
            at += u64::from(len);
        }
        if kind == FLUSH {
            good = self.file.sync_data().is_ok();
        }
        self.memory.write_obj(u8::from(!good), status.addr())?;
        Ok(written)
    }

    fn transfer(&mut self, buffer: &mut [u8], at: u64, write: bool) -> Result<()> {
        match &mut self.ring {
            Some(ring) => ring.transfer(self.file.as_raw_fd(), buffer, at, write),
            None if write => Ok(self.file.write_all_at(buffer, at)?),
            None => Ok(self.file.read_exact_at(buffer, at)?),
        }
    }
}

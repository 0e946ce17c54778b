//! The kernel's halves of virtio devices (vhost): set up again by the calls that the VMM had made,
//! in the process itself, since vhost serves the address space of whoever owns it.
//!
//! A ring goes on after the last descriptor that the guest was told is done. What the dead kernel
//! had taken beyond that, and not given back, is taken again: a frame may leave twice, which
//! networks bear, but no descriptor is lost, which a ring would not bear.
//!
//! Everything but the start comes when memory is in place; the start is the last call before the
//! process runs, for from then on the kernel reads and writes the guest's memory.

use super::error::Context;
use super::{RestoreError, Syscalls, calls};
use crate::dataset::{
    Dataset, Fidelity, FileKind, ObjectId, Process, Vhost, VhostDevice, VhostRing,
};

/// ioctls of Linux include/uapi/linux/vhost.h.
const SET_OWNER: u64 = 0xaf01;
const SET_FEATURES: u64 = 0x4008_af00;
const SET_MEM_TABLE: u64 = 0x4008_af03;
const SET_LOG_BASE: u64 = 0x4008_af04;
const SET_VRING_NUM: u64 = 0x4008_af10;
const SET_VRING_ADDR: u64 = 0x4028_af11;
const SET_VRING_BASE: u64 = 0x4008_af12;
const SET_VRING_KICK: u64 = 0x4008_af20;
const SET_VRING_CALL: u64 = 0x4008_af21;
const SET_VRING_ERR: u64 = 0x4008_af22;
const SET_VRING_BUSYLOOP: u64 = 0x4008_af23;
const SET_BACKEND_FEATURES: u64 = 0x4008_af25;
const NET_SET_BACKEND: u64 = 0x4008_af30;
const VSOCK_SET_GUEST_CID: u64 = 0x4008_af60;
const VSOCK_SET_RUNNING: u64 = 0x4004_af61;

/// VHOST_VRING_F_LOG.
const LOGGED: u32 = 1;

/// A vhost device of a process, and its number there.
fn devices<'d>(
    dataset: &'d Dataset,
    process: &'d Process,
) -> impl Iterator<Item = (i32, &'d Vhost)> {
    let mut seen = Vec::new();
    process.fds.iter().filter_map(move |fd| {
        let file = dataset.file(fd.file)?;
        let FileKind::Vhost(vhost) = &file.kind else {
            return None;
        };
        // Two numbers may be one open file.
        if seen.contains(&file.id) {
            return None;
        }
        seen.push(file.id);
        Some((fd.fd, vhost))
    })
}

/// Opens the device.
///
/// # Errors
/// It is not there: the module is missing.
pub fn open(vhost: &Vhost, pid: i32, sys: &mut dyn Syscalls) -> Result<i32, RestoreError> {
    let path = match vhost.device {
        VhostDevice::Net => "/dev/vhost-net",
        VhostDevice::Vsock { .. } => "/dev/vhost-vsock",
    };
    calls::open(sys, path, libc::O_RDWR | libc::O_CLOEXEC | libc::O_NONBLOCK)
        .during(pid, || format!("open {path} (is its module loaded?)"))
}

/// Sets up all vhost devices of a process, whose memory and eventfds are in place.
///
/// # Errors
/// What was refused; a ring whose indices contradict each other.
pub fn set_up(
    dataset: &Dataset,
    process: &Process,
    sys: &mut dyn Syscalls,
    notes: &mut Vec<Fidelity>,
) -> Result<(), RestoreError> {
    for (fd, vhost) in devices(dataset, process) {
        if !vhost.owned {
            continue;
        }
        let mut setup = Setup {
            dataset,
            process,
            fd,
            sys: &mut *sys,
            notes: &mut *notes,
        };
        setup.device(vhost)?;
        for (index, ring) in (0..).zip(&vhost.rings) {
            setup.ring(index, ring)?;
        }
    }
    Ok(())
}

/// Lets the devices that were running run: right before the process does.
///
/// # Errors
/// What was refused.
pub fn start(
    dataset: &Dataset,
    process: &Process,
    sys: &mut dyn Syscalls,
) -> Result<(), RestoreError> {
    for (fd, vhost) in devices(dataset, process) {
        match vhost.device {
            VhostDevice::Net => {
                for (index, ring) in (0u32..).zip(&vhost.rings) {
                    let Some(backend) = ring.backend else {
                        continue;
                    };
                    let tap = process.fds.iter().find(|f| f.file == backend);
                    let tap = tap.ok_or_else(|| RestoreError::Unsupported {
                        pid: process.pid,
                        what: format!("ring {index} of its vhost device"),
                        why: "it sends through a tap that the process has closed".into(),
                    })?;
                    pair(sys, fd, NET_SET_BACKEND, index, tap.fd.cast_unsigned())
                        .during(process.pid, || {
                            format!("VHOST_NET_SET_BACKEND of ring {index}")
                        })?;
                }
            }
            VhostDevice::Vsock { .. } => {
                if vhost.rings.iter().any(|r| r.backend.is_some()) {
                    sys.ioctl(fd, VSOCK_SET_RUNNING, &mut 1i32.to_ne_bytes())
                        .during(process.pid, || "VHOST_VSOCK_SET_RUNNING".into())?;
                }
            }
        }
    }
    Ok(())
}

/// An ioctl whose argument is a ring's index and a number: `struct vhost_vring_state` or
/// `vhost_vring_file`.
fn pair(
    sys: &mut dyn Syscalls,
    fd: i32,
    request: u64,
    index: u32,
    value: u32,
) -> Result<(), super::Errno> {
    let mut argument = [index.to_ne_bytes(), value.to_ne_bytes()].concat();
    sys.ioctl(fd, request, &mut argument).map(drop)
}

struct Setup<'a> {
    dataset: &'a Dataset,
    process: &'a Process,
    fd: i32,
    sys: &'a mut dyn Syscalls,
    notes: &'a mut Vec<Fidelity>,
}

impl Setup<'_> {
    fn device(&mut self, vhost: &Vhost) -> Result<(), RestoreError> {
        let pid = self.process.pid;
        self.sys
            .ioctl_value(self.fd, SET_OWNER, 0)
            .during(pid, || "VHOST_SET_OWNER".into())?;
        if vhost.log_base != 0 {
            self.number(SET_LOG_BASE, "VHOST_SET_LOG_BASE", vhost.log_base)?;
        }
        if vhost.backend_features != 0 {
            let features = vhost.backend_features;
            self.number(SET_BACKEND_FEATURES, "VHOST_SET_BACKEND_FEATURES", features)?;
        }
        self.number(SET_FEATURES, "VHOST_SET_FEATURES", vhost.features)?;
        if !vhost.regions.is_empty() {
            // struct vhost_memory: a count and padding, then the regions.
            let mut table = (vhost.regions.len() as u64).to_ne_bytes().to_vec();
            for region in &vhost.regions {
                for word in [region.guest_address, region.size, region.user_address, 0] {
                    table.extend(word.to_ne_bytes());
                }
            }
            self.sys
                .ioctl(self.fd, SET_MEM_TABLE, &mut table)
                .during(pid, || "VHOST_SET_MEM_TABLE".into())?;
        }
        if let VhostDevice::Vsock {
            guest_cid: cid @ 1..,
        } = vhost.device
        {
            self.number(VSOCK_SET_GUEST_CID, "VHOST_VSOCK_SET_GUEST_CID", cid.into())?;
        }
        Ok(())
    }

    fn number(&mut self, request: u64, name: &str, value: u64) -> Result<(), RestoreError> {
        self.sys
            .ioctl(self.fd, request, &mut value.to_ne_bytes())
            .during(self.process.pid, || format!("{name} {value:#x}"))
            .map(drop)
    }

    fn ring(&mut self, index: u32, ring: &VhostRing) -> Result<(), RestoreError> {
        let pid = self.process.pid;
        if ring.size == 0 {
            return Ok(());
        }
        let set = |sys: &mut dyn Syscalls, fd, request, name: &str, value| {
            pair(sys, fd, request, index, value)
                .during(pid, || format!("{name} of ring {index} to {value}"))
        };
        let fd = self.fd;
        set(
            self.sys,
            fd,
            SET_VRING_NUM,
            "VHOST_SET_VRING_NUM",
            ring.size,
        )?;
        let base = match ring.backend {
            Some(_) => self.next_descriptor(index, ring)?,
            None => ring.last_available,
        };
        set(
            self.sys,
            fd,
            SET_VRING_BASE,
            "VHOST_SET_VRING_BASE",
            base.into(),
        )?;
        if ring.descriptors != 0 {
            // struct vhost_vring_addr.
            let flags = if ring.log_address.is_some() {
                LOGGED
            } else {
                0
            };
            let mut argument = [index.to_ne_bytes(), flags.to_ne_bytes()].concat();
            let log = ring.log_address.unwrap_or(0);
            for word in [ring.descriptors, ring.used, ring.available, log] {
                argument.extend(word.to_ne_bytes());
            }
            self.sys
                .ioctl(fd, SET_VRING_ADDR, &mut argument)
                .during(pid, || format!("VHOST_SET_VRING_ADDR of ring {index}"))?;
        }
        if ring.busy_loop != 0 {
            let name = "VHOST_SET_VRING_BUSYLOOP_TIMEOUT";
            set(self.sys, fd, SET_VRING_BUSYLOOP, name, ring.busy_loop)?;
        }
        let kick = ring.kick.map(|file| self.by_file(file));
        let call = ring.call.map(|context| self.by_context(context));
        let error = ring.error.map(|context| self.by_context(context));
        for (request, name, number) in [
            (SET_VRING_KICK, "VHOST_SET_VRING_KICK", kick),
            (SET_VRING_CALL, "VHOST_SET_VRING_CALL", call),
            (SET_VRING_ERR, "VHOST_SET_VRING_ERR", error),
        ] {
            let Some(number) = number else {
                continue;
            };
            let number = number.ok_or_else(|| RestoreError::Unsupported {
                pid,
                what: format!("ring {index} of its vhost device"),
                why: format!("the eventfd of {name} is none that the process has open"),
            })?;
            set(self.sys, fd, request, name, number.cast_unsigned())?;
        }
        Ok(())
    }

    /// The number of an open file in the process.
    fn by_file(&self, file: ObjectId) -> Option<i32> {
        let fd = self.process.fds.iter().find(|f| f.file == file)?;
        Some(fd.fd)
    }

    /// The number of an eventfd in the process.
    fn by_context(&self, context: ObjectId) -> Option<i32> {
        self.process
            .fds
            .iter()
            .find_map(|fd| match self.dataset.file(fd.file)?.kind {
                FileKind::EventFd { context: c, .. } if c == context => Some(fd.fd),
                _ => None,
            })
    }

    /// Where in the ring of those available the device goes on: after as many as are in the ring
    /// of those used, which the device fills in the same order.
    fn next_descriptor(&mut self, index: u32, ring: &VhostRing) -> Result<u16, RestoreError> {
        let pid = self.process.pid;
        let what = || format!("read the used ring of ring {index}");
        // struct vring_used: flags, idx, then the entries.
        let mut word = [0; 2];
        self.sys
            .read(ring.used.wrapping_add(2), &mut word)
            .during(pid, what)?;
        let mut done = u16::from_le_bytes(word);
        if !ring.out_of_order.is_empty() {
            done = finish_zero_copy(self.sys, ring, done).during(pid, what)?;
        }
        let taken = ring.last_available.wrapping_sub(done);
        if u32::from(taken) > ring.size {
            return Err(RestoreError::Malformed {
                pid,
                what: format!("ring {index} of a vhost device"),
                why: format!(
                    "of {} descriptors it had taken {} and given back {done}",
                    ring.size, ring.last_available
                ),
            });
        }
        if taken > 1 && !ring.out_of_order.is_empty() {
            return Err(RestoreError::Unsupported {
                pid,
                what: format!("ring {index} of its vhost device"),
                why: "transmissions without a copy were being given back in that instant".into(),
            });
        }
        if taken != 0 {
            self.notes.push(Fidelity::reconstructed(
                format!("pid {pid}"),
                format!("ring {index} of its vhost device"),
                format!(
                    "{taken} buffers that were under way are taken again: frames may come twice"
                ),
            ));
        }
        Ok(done)
    }
}

/// Gives transmissions back to the guest that were sent from its memory without a copy: they
/// count as sent, and their place in the order is not known to the rings. The new index.
fn finish_zero_copy(
    sys: &mut dyn Syscalls,
    ring: &VhostRing,
    done: u16,
) -> Result<u16, super::Errno> {
    let mut done = done;
    for head in &ring.out_of_order {
        let slot = u64::from(done) % u64::from(ring.size.max(1));
        let at = ring.used.wrapping_add(4).wrapping_add(slot * 8);
        let entry = [head.to_le_bytes(), 0u32.to_le_bytes()].concat();
        sys.write(at, &entry)?;
        done = done.wrapping_add(1);
    }
    sys.write(ring.used.wrapping_add(2), &done.to_le_bytes())?;
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::restore::Errno;

    /// An address space that makes no calls.
    struct Memory(Vec<u8>);

    impl Memory {
        fn range(at: u64, len: usize) -> std::ops::Range<usize> {
            let at = usize::try_from(at).expect("an address");
            at..at + len
        }
    }

    impl Syscalls for Memory {
        fn syscall(&mut self, _: i64, _: [u64; 6]) -> Result<u64, Errno> {
            Err(Errno(libc::ENOSYS))
        }
        fn scratch(&self) -> (u64, usize) {
            (0, 0)
        }
        fn write(&mut self, at: u64, bytes: &[u8]) -> Result<(), Errno> {
            self.0[Self::range(at, bytes.len())].copy_from_slice(bytes);
            Ok(())
        }
        fn read(&mut self, at: u64, bytes: &mut [u8]) -> Result<(), Errno> {
            bytes.copy_from_slice(&self.0[Self::range(at, bytes.len())]);
            Ok(())
        }
    }

    #[test]
    fn transmissions_under_way_are_given_back_around_the_end_of_the_ring() {
        let ring = VhostRing {
            size: 4,
            descriptors: 0,
            available: 0,
            used: 16,
            log_address: None,
            last_available: 1,
            last_used: 0xffff,
            out_of_order: vec![2, 0],
            kick: None,
            call: None,
            error: None,
            backend: None,
            busy_loop: 0,
        };
        let mut memory = Memory(vec![0xaa; 16 + 4 + 4 * 8]);
        // Entries 0xffff and 0 of all that were ever used: slots 3 and 0.
        let done = finish_zero_copy(&mut memory, &ring, 0xffff);
        assert_eq!(done, Ok(1));
        let used = &memory.0[16..];
        assert_eq!(used[2..4], [1, 0]);
        assert_eq!(used[4 + 3 * 8..], [2, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(used[4..12], [0; 8]);
        assert_eq!(used[12..20], [0xaa; 8], "others are left alone");
    }
}

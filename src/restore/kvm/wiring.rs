//! Interrupts' ways into a VM, and notifications' out of it.

use super::KvmFiles;
use super::calls::Calls;
use super::create::header;
use super::error::KvmError;
use super::ioctls;
use crate::dataset::{Fidelity, IrqRoute, IrqRouteTarget, ObjectId, Vm};
use crate::sys::kvm_args::{bytes_of, bytes_of_mut};
use kvm_bindings as kvm;
use std::collections::BTreeMap;

/// Routes, irqfds and ioeventfds.
pub(super) fn wire(
    calls: &mut Calls,
    vm: &Vm,
    fd: i32,
    eventfds: &dyn Fn(ObjectId) -> Option<i32>,
    files: &mut KvmFiles,
) -> Result<(), KvmError> {
    // Routing before irqfds, which look their route up when they are made.
    if !vm.routes.is_empty() {
        calls.set_bytes(fd, ioctls::SET_GSI_ROUTING, &encode_routes(&vm.routes))?;
    }
    wire_irqfds(calls, vm, fd, eventfds, files)?;
    wire_ioeventfds(calls, vm, fd, eventfds, files)
}

/// `struct kvm_irq_routing`.
fn encode_routes(routes: &[IrqRoute]) -> Vec<u8> {
    let mut bytes = header(routes.len());
    for route in routes {
        let (kind, flags, content) = match route.target {
            IrqRouteTarget::Irqchip { chip, pin } => {
                (kvm::KVM_IRQ_ROUTING_IRQCHIP, 0, [chip, pin, 0, 0])
            }
            IrqRouteTarget::Msi {
                address,
                data,
                devid,
                flags,
            } => {
                let [low, high] = [address & 0xffff_ffff, address >> 32].map(|half| half as u32);
                (kvm::KVM_IRQ_ROUTING_MSI, flags, [low, high, data, devid])
            }
            IrqRouteTarget::HypervSint { vcpu, sint } => {
                (kvm::KVM_IRQ_ROUTING_HV_SINT, 0, [vcpu, sint, 0, 0])
            }
        };
        let mut words = [0; 12];
        words[..4].copy_from_slice(&[route.gsi, kind, flags, 0]);
        words[4..8].copy_from_slice(&content);
        bytes.extend(words.iter().flat_map(|w: &u32| w.to_le_bytes()));
    }
    bytes
}

/// Finds eventfds, and makes one where no restored process holds it.
struct Eventfds<'a> {
    known: &'a dyn Fn(ObjectId) -> Option<i32>,
    made: BTreeMap<ObjectId, i32>,
}

impl Eventfds<'_> {
    /// The descriptor, and whether it had to be made.
    fn find(&mut self, calls: &mut Calls, context: ObjectId) -> Result<(i32, bool), KvmError> {
        if let Some(fd) = (self.known)(context) {
            return Ok((fd, false));
        }
        if let Some(&fd) = self.made.get(&context) {
            return Ok((fd, true));
        }
        let flags = u64::from((libc::EFD_CLOEXEC | libc::EFD_NONBLOCK).cast_unsigned());
        let fd = calls
            .sys
            .syscall(libc::SYS_eventfd2, [0, flags, 0, 0, 0, 0])
            .map_err(|errno| calls.failed("eventfd2", errno))?;
        let fd = calls.descriptor("eventfd2", fd)?;
        self.made.insert(context, fd);
        Ok((fd, true))
    }
}

fn wire_irqfds(
    calls: &mut Calls,
    vm: &Vm,
    fd: i32,
    known: &dyn Fn(ObjectId) -> Option<i32>,
    files: &mut KvmFiles,
) -> Result<(), KvmError> {
    let made = BTreeMap::new();
    let mut eventfds = Eventfds { known, made };
    for irqfd in &vm.irqfds {
        let (event, made) = eventfds.find(calls, irqfd.eventfd)?;
        let mut argument = kvm::kvm_irqfd {
            fd: event.cast_unsigned(),
            gsi: irqfd.gsi,
            ..Default::default()
        };
        if let Some(resample) = irqfd.resample {
            let (resample, _) = eventfds.find(calls, resample)?;
            argument.flags = kvm::KVM_IRQFD_FLAG_RESAMPLE;
            argument.resamplefd = resample.cast_unsigned();
        }
        if made {
            // An irqfd goes when its eventfd is closed, so somebody holds it:
            // a process outside the dataset (a vhost-user back end, say).
            files.fidelity.push(Fidelity::lost(
                &calls.subject,
                format!(
                    "eventfd {} of the irqfd on GSI {}",
                    irqfd.eventfd, irqfd.gsi
                ),
                "no restored process holds it; interrupts from its other holder will not come",
            ));
        }
        match calls.try_bytes(fd, ioctls::IRQFD, bytes_of_mut(&mut argument)) {
            Ok(_) => {}
            Err(errno) => {
                let call = format!("KVM_IRQFD(gsi {}, eventfd {event})", irqfd.gsi);
                return Err(calls.failed(call, errno));
            }
        }
    }
    files.temporary.extend(eventfds.made.values());
    Ok(())
}

fn wire_ioeventfds(
    calls: &mut Calls,
    vm: &Vm,
    fd: i32,
    known: &dyn Fn(ObjectId) -> Option<i32>,
    files: &mut KvmFiles,
) -> Result<(), KvmError> {
    let made = BTreeMap::new();
    let mut eventfds = Eventfds { known, made };
    for io in &vm.ioeventfds {
        let (event, made) = eventfds.find(calls, io.eventfd)?;
        let mut flags = 0;
        if io.pio {
            flags |= 1 << kvm::kvm_ioeventfd_flag_nr_pio;
        }
        if io.datamatch.is_some() {
            flags |= 1 << kvm::kvm_ioeventfd_flag_nr_datamatch;
        }
        let argument = kvm::kvm_ioeventfd {
            datamatch: io.datamatch.unwrap_or(0),
            addr: io.address,
            len: io.len,
            fd: event,
            flags,
            ..Default::default()
        };
        let mut bytes = bytes_of(&argument).to_vec();
        if let Err(errno) = calls.try_bytes(fd, ioctls::IOEVENTFD, &mut bytes) {
            let call = format!("KVM_IOEVENTFD({:#x}, {} bytes)", io.address, io.len);
            return Err(calls.failed(call, errno));
        }
        if made {
            // KVM keeps an ioeventfd whose descriptors are all closed: the
            // guest's writes are swallowed, as they were before.
            files.fidelity.push(Fidelity::reconstructed(
                &calls.subject,
                format!(
                    "eventfd {} of the ioeventfd at {:#x}",
                    io.eventfd, io.address
                ),
                "no restored process holds it; made anew, so that the guest's writes go nowhere \
                 without an exit",
            ));
        }
    }
    // KVM holds them; with their descriptors closed they are as they were.
    for fd in eventfds.made.into_values() {
        let fd = u64::from(fd.cast_unsigned());
        calls
            .sys
            .syscall(libc::SYS_close, [fd, 0, 0, 0, 0, 0])
            .map_err(|errno| calls.failed("close of a temporary eventfd", errno))?;
    }
    Ok(())
}

//! One signal for every irqfd and ioeventfd, in place of those that the crash
//! swallowed.
//!
//! An interrupt that was queued in a worker of the dead kernel, or a
//! notification that an I/O thread had read from its eventfd but not acted
//! upon, is lost, and a guest that waits for it would wait for ever. One too
//! many does no harm: drivers look at their rings and find nothing new.

use super::calls::Calls;
use super::error::KvmError;
use crate::dataset::{IrqRoute, IrqRouteTarget, Irqchip, ObjectId, Vm};
use crate::restore::Errno;
use std::collections::BTreeSet;

/// Kicks them; only these eventfds, whose counts nobody interprets.
pub(super) fn kick(
    calls: &mut Calls,
    vm: &Vm,
    eventfds: &dyn Fn(ObjectId) -> Option<i32>,
) -> Result<(), KvmError> {
    let lines = vm
        .irqfds
        .iter()
        .filter(|irqfd| {
            let mut routes = vm.routes.iter().filter(|r| r.gsi == irqfd.gsi);
            routes.all(|route| bears_a_spurious_one(route, &vm.irqchip))
        })
        .map(|irqfd| irqfd.eventfd);
    let doorbells = vm.ioeventfds.iter().map(|io| io.eventfd);
    let contexts: BTreeSet<ObjectId> = lines.chain(doorbells).collect();
    for fd in contexts.into_iter().filter_map(eventfds) {
        write_one(calls, fd)?;
    }
    Ok(())
}

/// Whether an interrupt over this route comes to a driver's handler. A vector
/// below 16 would be taken for a fault, and NMI, SMI, INIT or ExtINT mean
/// something of their own: such a route is not set up, or not for a device.
fn bears_a_spurious_one(route: &IrqRoute, irqchip: &Irqchip) -> bool {
    // The low word of an MSI's data and of an IOAPIC's entry agree here:
    // vector in bits 0 to 7, delivery mode in bits 8 to 10 (fixed 0, lowest
    // priority 1).
    let ordinary = |word: u64| word & 0xff >= 16 && (word >> 8) & 7 <= 1;
    match route.target {
        IrqRouteTarget::Msi { data, .. } => ordinary(u64::from(data)),
        IrqRouteTarget::Irqchip { chip, pin } => match irqchip {
            Irqchip::Kernel { ioapic, .. } if chip == super::shared_state::IOAPIC_CHIP => {
                const MASKED: u64 = 1 << 16;
                usize::try_from(pin)
                    .ok()
                    .and_then(|pin| ioapic.redirection.get(pin))
                    .is_some_and(|&entry| entry & MASKED != 0 || ordinary(entry))
            }
            // A PIC adds its own base to the line; the guest masks the PICs
            // when it uses the IOAPIC.
            _ => true,
        },
        IrqRouteTarget::HypervSint { .. } => false,
    }
}

fn write_one(calls: &mut Calls, fd: i32) -> Result<(), KvmError> {
    let failed = |calls: &Calls, errno| Err(calls.failed("kick of an eventfd", errno));
    let fd = u64::from(fd.cast_unsigned());
    // A full counter would make the write wait: then it is signalled already.
    let (at, _) = calls.sys.scratch();
    // struct pollfd: i32 fd, i16 events, i16 revents.
    let pollfd = fd | u64::from(libc::POLLOUT.cast_unsigned()) << 32;
    if let Err(errno) = calls.sys.write(at, &pollfd.to_le_bytes()) {
        return failed(calls, errno);
    }
    match calls.sys.syscall(libc::SYS_poll, [at, 1, 0, 0, 0, 0]) {
        Ok(0) => return Ok(()),
        Ok(_) => {}
        Err(errno) => return failed(calls, errno),
    }
    let written = calls
        .sys
        .write(at, &1_u64.to_le_bytes())
        .and_then(|()| calls.sys.syscall(libc::SYS_write, [fd, at, 8, 0, 0, 0]));
    match written {
        Ok(_) | Err(Errno(libc::EAGAIN)) => Ok(()),
        Err(errno) => failed(calls, errno),
    }
}

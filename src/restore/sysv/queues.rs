//! Message queues with what is in them.

use super::create::{self, arg};
use super::{Made, stub_of};
use crate::dataset::{SysvKind, SysvObject};
use crate::restore::error::Context;
use crate::restore::stub::Family;
use crate::restore::{Errno, RestoreError, Syscalls, calls};
use crate::sys::sysv::Kind;

/// IPC_NOWAIT.
const NOWAIT: u64 = 0o4000;
/// Of `msg_qbytes` in `struct msqid64_ds`. Linux include/uapi/asm-generic/msgbuf.h.
const QBYTES: usize = 48 + 3 * 8 + 2 * 8;

pub(super) fn make(
    family: &mut Family<'_>,
    object: &SysvObject,
    made: &mut Made,
) -> Result<(), RestoreError> {
    let SysvKind::Queue {
        max_bytes,
        messages,
        sender,
        receiver,
    } = &object.kind
    else {
        return Ok(());
    };
    let pid = family.process(0)?.pid;
    let mut get = |sys: &mut dyn Syscalls, flags: u64| {
        calls::plain(sys, libc::SYS_msgget, [arg(object.key), flags])
    };
    let sys = family.leader(0)?;
    let id = create::create(sys, pid, Kind::Queue, object, &mut get)?;
    made.remember(Kind::Queue, object, id);
    let bytes = max_bytes.to_ne_bytes();
    create::own(sys, Kind::Queue, id, object, &[(QBYTES, &bytes)])
        .during(pid, || format!("msgctl(IPC_SET) of {}", object.name()))?;
    let knows = |family: &Family<'_>, pid: i32| family.stubs.iter().any(|s| s.process.pid == pid);
    if knows(family, *receiver) {
        // So that it says who received last.
        let what = || format!("give {} its last receiver", object.name());
        send(family.leader(0)?, id, 1, b"").during(pid, what)?;
        let stub = stub_of(family, *receiver);
        let sys = family.leader(stub)?;
        calls::put(sys, &[0; 16])
            .and_then(|at| calls::plain(sys, libc::SYS_msgrcv, [arg(id), at, 0, 0, NOWAIT]))
            .during(*receiver, what)?;
    }
    let stub = stub_of(family, *sender);
    let sys = family.leader(stub)?;
    for message in messages {
        send(sys, id, message.kind, &message.data.0).during(*sender, || {
            format!(
                "msgsnd of {} bytes to {} (see kernel.msgmax, kernel.msgmnb)",
                message.data.0.len(),
                object.name()
            )
        })?;
    }
    Ok(())
}

fn send(sys: &mut dyn Syscalls, id: i32, kind: i64, text: &[u8]) -> Result<(), Errno> {
    let mut bytes = kind.to_ne_bytes().to_vec();
    bytes.extend(text);
    let at = calls::put(sys, &bytes)?;
    calls::plain(
        sys,
        libc::SYS_msgsnd,
        [arg(id), at, text.len() as u64, NOWAIT],
    )
    .map(drop)
}

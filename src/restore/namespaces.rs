//! A time namespace, so that the clocks go on where they stood at the crash, a
//! PID namespace, when PIDs of the dead host are in use on this one, or those of
//! a container.

use super::container::Container;
use super::error::Context;
use super::inject::Tracee;
use super::stub::{Birth, Kind, spawn};
use super::{Doors, RestoreError, Syscalls, calls};
use crate::dataset::{Dataset, Host, NamespaceKind};
use crate::sys::ptrace;
use std::collections::HashSet;
use std::os::fd::AsRawFd;
use std::time::Duration;

/// `CLONE_NEWTIME`. Linux include/uapi/linux/sched.h.
const NEWTIME: u64 = 0x80;

/// What PID 1 of a namespace does: `while (wait4(-1, 0, 0, 0) != -ECHILD); exit(0)`.
#[rustfmt::skip]
const REAPER: [u8; 36] = [
    0x48, 0xc7, 0xc7, 0xff, 0xff, 0xff, 0xff, // mov rdi, -1
    0x31, 0xf6,                               // xor esi, esi
    0x31, 0xd2,                               // xor edx, edx
    0x4d, 0x31, 0xd2,                         // xor r10, r10
    0xb8, 0x3d, 0x00, 0x00, 0x00,             // mov eax, 61 (wait4)
    0x0f, 0x05,                               // syscall
    0x48, 0x83, 0xf8, 0xf6,                   // cmp rax, -10 (ECHILD)
    0x75, 0xe5,                               // jne to the start
    0x31, 0xff,                               // xor edi, edi
    0xb8, 0x3c, 0x00, 0x00, 0x00,             // mov eax, 60 (exit)
    0x0f, 0x05,                               // syscall
];

/// The children of `nursery` will live in a time namespace whose monotonic and
/// boot-time clocks go on from the values at the crash.
///
/// # Errors
/// The kernel has no time namespaces, or refuses the offsets.
pub fn enter_time(nursery: &mut Tracee, host: &Host) -> Result<(), RestoreError> {
    if host.monotonic_ns <= 0 {
        return Ok(());
    }
    let what = || "unshare(CLONE_NEWTIME): the clocks must go on from the crash".to_string();
    calls::plain(nursery, libc::SYS_unshare, [NEWTIME]).during(0, what)?;
    let uptime = |clock| -> Result<i64, RestoreError> {
        let now = nix::time::clock_gettime(clock)
            .map_err(std::io::Error::from)
            .during(0, || "clock_gettime".into())?;
        i64::try_from(Duration::from(now).as_nanos())
            .map_err(std::io::Error::other)
            .during(0, || "clock_gettime".into())
    };
    let boottime = if host.boottime_ns > 0 {
        host.boottime_ns
    } else {
        host.monotonic_ns
    };
    let lines = [
        offset(
            "monotonic",
            host.monotonic_ns,
            uptime(nix::time::ClockId::CLOCK_MONOTONIC)?,
        ),
        offset(
            "boottime",
            boottime,
            uptime(nix::time::ClockId::CLOCK_BOOTTIME)?,
        ),
    ];
    let path = format!("/proc/{}/timens_offsets", nursery.tid);
    std::fs::write(&path, lines.concat()).during(0, || format!("write {path}"))
}

/// `NAME SECONDS NANOSECONDS\n`, nanoseconds not negative.
fn offset(name: &str, then: i64, now: i64) -> String {
    const SECOND: i64 = 1_000_000_000;
    let offset = then.saturating_sub(now);
    format!(
        "{name} {} {}\n",
        offset.div_euclid(SECOND),
        offset.rem_euclid(SECOND)
    )
}

/// Opens this host's /proc, and its root when the nursery is to leave it, for
/// all that are born of it: at the first numbers that are closed at the end.
///
/// # Errors
/// Not allowed.
pub fn open_doors(nursery: &mut Tracee, base: i32, leaves: bool) -> Result<(), RestoreError> {
    let mut open = |path: &str, to: i32| -> Result<i32, RestoreError> {
        let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC;
        let fd = calls::open(nursery, path, flags).during(0, || format!("open {path}"))?;
        calls::dup_to(nursery, fd, to, true)
            .and_then(|()| calls::close(nursery, fd))
            .during(0, || "dup3".into())?;
        Ok(to)
    };
    let doors = Doors {
        proc: Some(open("/proc", base)?),
        host: match leaves {
            true => Some(open("/", base.saturating_add(1))?),
            false => None,
        },
    };
    nursery.set_doors(doors);
    Ok(())
}

/// Takes the nursery into the namespaces of a container.
///
/// # Errors
/// Not allowed.
pub fn enter(nursery: &mut Tracee, container: &Container) -> Result<(), RestoreError> {
    let mut open = Vec::new();
    for (kind, file) in &container.namespaces {
        // This process holds them; the container may have ended since.
        let path = format!("{}/fd/{}", std::process::id(), file.as_raw_fd());
        let fd = calls::open_in_proc(nursery, &path, libc::O_RDONLY | libc::O_CLOEXEC)
            .during(0, || {
                format!("open {}: its {kind} namespace", container.found)
            })?;
        open.push((*kind, fd));
    }
    for (kind, fd) in open {
        let arg = i64::from(fd).cast_unsigned();
        calls::plain(nursery, libc::SYS_setns, [arg, 0]).during(0, || {
            format!("setns to {}: its {kind} namespace", container.found)
        })?;
        calls::close(nursery, fd).during(0, || "close".into())?;
    }
    if container.enters(NamespaceKind::User) {
        // Root there, as whoever makes a container's processes.
        calls::plain(nursery, libc::SYS_setgroups, [0, 0])
            .and_then(|_| calls::plain(nursery, libc::SYS_setresgid, [0, 0, 0]))
            .and_then(|_| calls::plain(nursery, libc::SYS_setresuid, [0, 0, 0]))
            .during(0, || "become root of the container's user namespace".into())?;
    }
    Ok(())
}

/// A task in the container's PID namespace that makes the roots of a set: when
/// it ends, they are children of the container's first process. Its PID is none
/// of the set's.
///
/// # Errors
/// Not allowed.
pub fn deputy(nursery: &mut Tracee, dataset: &Dataset) -> Result<Tracee, RestoreError> {
    /// PIDs tried.
    const TRIES: i32 = 64;
    let threads = dataset.processes.iter().flat_map(|p| &p.threads);
    let taken: HashSet<i32> = threads
        .map(|t| t.ns_tid)
        .chain(dataset.zombies.iter().map(|z| z.ns_pid))
        .collect();
    let highest = taken.iter().copied().max().unwrap_or(1);
    let above = (1..=TRIES).map(|i| highest.saturating_add(i));
    let mut last = RestoreError::PidTaken { pid: highest };
    // Below, should the highest possible one be among them.
    for id in above.chain(300..300 + TRIES) {
        if taken.contains(&id) {
            continue;
        }
        match spawn(nursery, Kind::Process(Birth::default()), Some(id)) {
            Err(e @ (RestoreError::PidTaken { .. } | RestoreError::Unsupported { .. })) => last = e,
            other => return other,
        }
    }
    Err(last)
}

/// The children of a task will live in a new PID namespace, the first of them as its PID 1.
///
/// # Errors
/// Not allowed.
pub fn unshare_pids(parent: &mut Tracee) -> Result<(), RestoreError> {
    let flag = libc::CLONE_NEWPID.cast_unsigned().into();
    calls::plain(parent, libc::SYS_unshare, [flag])
        .during(0, || "unshare(CLONE_NEWPID)".into())
        .map(drop)
}

/// Gives the nursery, and all that are born of it, a mount namespace of their own: a copy of the one
/// that it is in, from which nothing that is mounted gets out.
///
/// # Errors
/// Not allowed.
pub fn copy_mounts(nursery: &mut Tracee) -> Result<(), RestoreError> {
    let flag = libc::CLONE_NEWNS.cast_unsigned().into();
    calls::plain(nursery, libc::SYS_unshare, [flag]).during(0, || "unshare(CLONE_NEWNS)".into())?;
    let slaves = libc::MS_REC | libc::MS_SLAVE;
    calls::put(nursery, b"/\0")
        .and_then(|root| calls::plain(nursery, libc::SYS_mount, [0, root, 0, slaves, 0]))
        .during(0, || "mount(/, MS_SLAVE)".into())
        .map(drop)
}

/// Makes a new PID namespace below the nursery, and its PID 1.
///
/// # Errors
/// Not allowed.
pub fn pid_namespace(nursery: &mut Tracee) -> Result<Tracee, RestoreError> {
    unshare_pids(nursery)?;
    let mut init = spawn(nursery, Kind::Process(Birth::default()), None)?;
    calls::plain::<0>(&mut init, libc::SYS_setsid, []).during(0, || "setsid".into())?;
    Ok(init)
}

/// Makes PID 1 of a namespace ready for its work, to reap and to end with the last one. From here on
/// it outlives vmrestore: with it would go all that live there.
///
/// # Errors
/// It was killed.
pub fn ready_init(init: &mut Tracee) -> Result<(), RestoreError> {
    let start = init.scratch_mapping().start;
    let written = init.write(start, &REAPER);
    written.during(0, || "write the work of the namespace's PID 1".into())?;
    ptrace::registers(init.tid)
        .and_then(|mut regs| {
            regs.rip = start;
            regs.orig_rax = u64::MAX;
            ptrace::set_registers(init.tid, &regs)
        })
        .and_then(|()| ptrace::let_outlive(init.tid))
        .during(0, || "make the namespace's PID 1 ready".into())
}

#[cfg(test)]
mod tests {
    use super::offset;

    #[test]
    fn offsets_have_positive_nanoseconds() {
        assert_eq!(
            offset("monotonic", 5_000_000_001, 1_000_000_000),
            "monotonic 4 1\n"
        );
        assert_eq!(
            offset("monotonic", 1_000_000_000, 2_500_000_000),
            "monotonic -2 500000000\n"
        );
    }
}

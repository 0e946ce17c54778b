//! A time namespace, so that the clocks go on where they stood at the crash,
//! and a PID namespace, when PIDs of the dead host are in use on this one.

use super::error::Context;
use super::inject::Tracee;
use super::stub::{Kind, spawn};
use super::{RestoreError, Syscalls, calls};
use crate::dataset::Host;
use crate::sys::ptrace;
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

/// Makes a new PID namespace below the nursery, and its PID 1.
///
/// # Errors
/// Not allowed.
pub fn pid_namespace(nursery: &mut Tracee) -> Result<Tracee, RestoreError> {
    let flag = libc::CLONE_NEWPID.cast_unsigned().into();
    calls::plain(nursery, libc::SYS_unshare, [flag])
        .during(0, || "unshare(CLONE_NEWPID)".into())?;
    let mut init = spawn(nursery, Kind::Process, None)?;
    calls::plain::<0>(&mut init, libc::SYS_setsid, []).during(0, || "setsid".into())?;
    Ok(init)
}

/// Lets PID 1 of a namespace begin its work: reap, and end with the last one.
pub fn release_init(init: &mut Tracee) {
    let start = init.scratch_mapping().start;
    let released = init.write(start, &REAPER).is_ok()
        && ptrace::registers(init.tid).is_ok_and(|mut regs| {
            regs.rip = start;
            regs.orig_rax = u64::MAX;
            ptrace::set_registers(init.tid, &regs).is_ok()
        })
        && ptrace::detach(init.tid).is_ok();
    if !released {
        // It stays stopped until vmrestore ends and takes the namespace along.
        tracing::error!("PID 1 of the restored processes' PID namespace could not be started");
    }
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

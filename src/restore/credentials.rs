//! Credentials of a thread, in the one order in which the kernel takes them.

use super::error::Context;
use super::{RestoreError, Syscalls, calls};
use crate::dataset::Credentials;

/// `_LINUX_CAPABILITY_VERSION_3`.
const CAPABILITY_VERSION: u32 = 0x2008_0522;

/// `SECBIT_NO_SETUID_FIXUP`: user IDs change without touching capabilities.
const NO_SETUID_FIXUP: u64 = 4;

/// `PR_CAP_AMBIENT_RAISE`, `PR_CAP_AMBIENT_CLEAR_ALL`.
const AMBIENT_RAISE: u64 = 2;
const AMBIENT_CLEAR: u64 = 4;

/// The highest capability that there may be.
const MAX_CAPABILITY: u32 = 63;

/// Sets a thread's credentials.
///
/// # Errors
/// What was refused: vmrestore lacks a capability that the thread had.
pub fn set(tid: i32, sys: &mut dyn Syscalls, cred: &Credentials) -> Result<(), RestoreError> {
    // 1. IDs shall not change capabilities; ambient ones begin empty.
    calls::prctl(sys, libc::PR_SET_SECUREBITS, [NO_SETUID_FIXUP])
        .during(tid, || "prctl(PR_SET_SECUREBITS)".into())?;
    calls::prctl(sys, libc::PR_CAP_AMBIENT, [AMBIENT_CLEAR, 0, 0, 0])
        .during(tid, || "prctl(PR_CAP_AMBIENT_CLEAR_ALL)".into())?;
    // 2. Groups, while we may still choose them.
    let groups: Vec<u8> = cred.groups.iter().flat_map(|g| g.to_ne_bytes()).collect();
    let at = calls::put(sys, &groups).during(tid, || "its groups".into())?;
    calls::plain(sys, libc::SYS_setgroups, [cred.groups.len() as u64, at])
        .during(tid, || "setgroups".into())?;
    let ids = |[real, effective, saved, _]: [u32; 4]| [real.into(), effective.into(), saved.into()];
    calls::plain(sys, libc::SYS_setresgid, ids(cred.gid)).during(tid, || "setresgid".into())?;
    calls::plain(sys, libc::SYS_setfsgid, [cred.gid[3].into()])
        .during(tid, || "setfsgid".into())?;
    // 3. The inheritable set may not go beyond the bounding set: before it shrinks.
    let full = capabilities(sys).during(tid, || "capget".into())?;
    set_capabilities(sys, full, full, cred.cap_inheritable & full)
        .during(tid, || "capset (inheritable)".into())?;
    for capability in 0..=MAX_CAPABILITY {
        if full >> capability & 1 == 1 && cred.cap_bounding >> capability & 1 == 0 {
            calls::prctl(sys, libc::PR_CAPBSET_DROP, [capability.into(), 0, 0, 0])
                .during(tid, || format!("prctl(PR_CAPBSET_DROP, {capability})"))?;
        }
    }
    // 4. Ambient ones, while no secure bit forbids it: permitted and inheritable.
    for capability in 0..=MAX_CAPABILITY {
        if (cred.cap_ambient & full) >> capability & 1 == 1 {
            let args = [AMBIENT_RAISE, capability.into(), 0, 0];
            calls::prctl(sys, libc::PR_CAP_AMBIENT, args)
                .during(tid, || format!("prctl(PR_CAP_AMBIENT_RAISE, {capability})"))?;
        }
    }
    // 5. Users.
    calls::plain(sys, libc::SYS_setresuid, ids(cred.uid)).during(tid, || "setresuid".into())?;
    calls::plain(sys, libc::SYS_setfsuid, [cred.uid[3].into()])
        .during(tid, || "setfsuid".into())?;
    // 6. Secure bits need CAP_SETPCAP: before it may go.
    calls::prctl(sys, libc::PR_SET_SECUREBITS, [cred.securebits.into()])
        .during(tid, || "prctl(PR_SET_SECUREBITS)".into())?;
    // 7. What is left.
    set_capabilities(
        sys,
        cred.cap_effective & full,
        cred.cap_permitted & full,
        cred.cap_inheritable & full,
    )
    .during(tid, || "capset".into())
}

/// The permitted set of the caller.
fn capabilities(sys: &mut dyn Syscalls) -> Result<u64, super::Errno> {
    let mut bytes = [0; 32];
    bytes[..4].copy_from_slice(&CAPABILITY_VERSION.to_ne_bytes());
    let at = calls::put(sys, &bytes)?;
    calls::plain(sys, libc::SYS_capget, [at, at + 8])?;
    sys.read(at, &mut bytes)?;
    let half = |i: usize| -> u64 {
        // Two records of (effective, permitted, inheritable) behind the header.
        let from = 8 + i * 12 + 4;
        bytes
            .get(from..from + 4)
            .and_then(|b| b.try_into().ok())
            .map_or(0, |b| u32::from_ne_bytes(b).into())
    };
    Ok(half(0) | half(1) << 32)
}

fn set_capabilities(
    sys: &mut dyn Syscalls,
    effective: u64,
    permitted: u64,
    inheritable: u64,
) -> Result<(), super::Errno> {
    let mut bytes = Vec::with_capacity(32);
    bytes.extend(CAPABILITY_VERSION.to_ne_bytes());
    bytes.extend(0u32.to_ne_bytes());
    for shift in [0, 32] {
        for set in [effective, permitted, inheritable] {
            bytes.extend(((set >> shift) as u32).to_ne_bytes());
        }
    }
    let at = calls::put(sys, &bytes)?;
    calls::plain(sys, libc::SYS_capset, [at, at + 8]).map(drop)
}

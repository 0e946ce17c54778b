//! Tap and tun queues.

use super::Place;
use crate::dataset::{Fidelity, FileKind, OpenFile};
use crate::restore::error::Context;
use crate::restore::{RestoreError, calls};
use std::path::Path;

/// ioctls of Linux include/uapi/linux/if_tun.h.
const SETIFF: u64 = 0x4004_54ca;
const SETPERSIST: u64 = 0x4004_54cb;
const SETOFFLOAD: u64 = 0x4004_54d0;
const SETSNDBUF: u64 = 0x4004_54d4;
const SETVNETHDRSZ: u64 = 0x4004_54d8;

/// What TUNSETIFF takes: IFF_TUN 1, TAP 2, NAPI 0x10, NAPI_FRAGS 0x20,
/// MULTI_QUEUE 0x100, NO_PI 0x1000, ONE_QUEUE 0x2000, VNET_HDR 0x4000.
const FLAGS: u32 = 0x7133;

/// Bytes of an interface's name, and of `struct ifreq`.
const NAME_LEN: usize = 16;
const IFREQ_LEN: usize = 40;

/// `INT_MAX`: the default of `tun_struct.sndbuf`.
const NO_LIMIT: i32 = i32::MAX;

/// Opens /dev/net/tun and attaches it to the interface that it was attached to.
pub(super) fn open(
    file: &OpenFile,
    place: &mut Place<'_>,
    notes: &mut Vec<Fidelity>,
) -> Result<i32, RestoreError> {
    let FileKind::Tun {
        interface,
        flags,
        vnet_header_len,
        offloads,
        sndbuf,
        persist,
    } = &file.kind
    else {
        return Err(RestoreError::Malformed {
            pid: place.pid,
            what: file.path.clone(),
            why: "it is no tap".into(),
        });
    };
    let pid = place.pid;
    let there = Path::new("/sys/class/net").join(interface).exists();
    let access = libc::O_RDWR | libc::O_CLOEXEC | libc::O_NONBLOCK;
    let fd = calls::open(place.sys, "/dev/net/tun", access)
        .during(pid, || "open /dev/net/tun".into())?;
    if interface.is_empty() {
        return Ok(fd);
    }
    let mut request = vec![0; IFREQ_LEN];
    for (to, from) in request.iter_mut().zip(interface.bytes().take(NAME_LEN - 1)) {
        *to = from;
    }
    let kind = (flags & FLAGS) as u16;
    if let Some(to) = request.get_mut(NAME_LEN..NAME_LEN + 2) {
        to.copy_from_slice(&kind.to_ne_bytes());
    }
    place
        .sys
        .ioctl(fd, SETIFF, &mut request)
        .during(pid, || format!("ioctl(TUNSETIFF) of {interface}"))?;
    if *vnet_header_len != 0 {
        place
            .sys
            .ioctl(fd, SETVNETHDRSZ, &mut vnet_header_len.to_ne_bytes())
            .during(pid, || format!("ioctl(TUNSETVNETHDRSZ) of {interface}"))?;
    }
    place
        .sys
        .ioctl_value(fd, SETOFFLOAD, (*offloads).into())
        .during(pid, || format!("ioctl(TUNSETOFFLOAD) of {interface}"))?;
    if *sndbuf > 0 && *sndbuf != NO_LIMIT {
        place
            .sys
            .ioctl(fd, SETSNDBUF, &mut sndbuf.to_ne_bytes())
            .during(pid, || format!("ioctl(TUNSETSNDBUF) of {interface}"))?;
    }
    if *persist {
        place
            .sys
            .ioctl_value(fd, SETPERSIST, 1)
            .during(pid, || format!("ioctl(TUNSETPERSIST) of {interface}"))?;
    }
    if !there {
        notes.push(Fidelity::lost(
            format!("pid {pid}"),
            format!("network interface {interface}"),
            "made anew: it is down, in no bridge, and without an address; \
             ip link set it up as it was",
        ));
    }
    Ok(fd)
}

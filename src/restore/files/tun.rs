//! Tap and tun queues: attached to the interface that they were attached to. The interface itself
//! is set up when the process is about to run: see `restore::taps`.

use super::{Place, Workshop};
use crate::dataset::{Fidelity, FileKind, OpenFile};
use crate::restore::error::Context;
use crate::restore::taps::Queue;
use crate::restore::{Errno, RestoreError, Syscalls, calls};
use std::path::Path;

/// ioctls of Linux include/uapi/linux/if_tun.h.
const SETIFF: u64 = 0x4004_54ca;
const SETOWNER: u64 = 0x4004_54cc;
const SETGROUP: u64 = 0x4004_54ce;
const SETOFFLOAD: u64 = 0x4004_54d0;
const SETSNDBUF: u64 = 0x4004_54d4;
const SETVNETHDRSZ: u64 = 0x4004_54d8;
const SETQUEUE: u64 = 0x4004_54d9;
const SETVNETLE: u64 = 0x4004_54dc;
const SETVNETBE: u64 = 0x4004_54de;

/// What TUNSETIFF takes: IFF_TUN 1, TAP 2, NAPI 0x10, NAPI_FRAGS 0x20,
/// MULTI_QUEUE 0x100, NO_PI 0x1000, ONE_QUEUE 0x2000, VNET_HDR 0x4000.
const FLAGS: u32 = 0x7133;
/// What TUNSETVNETLE and TUNSETVNETBE set: TUN_VNET_LE, TUN_VNET_BE.
const VNET_LE: u32 = 0x8000_0000;
const VNET_BE: u32 = 0x4000_0000;
/// IFF_DETACH_QUEUE, of TUNSETQUEUE.
const DETACH: u32 = 0x0400;

/// Bytes of an interface's name, and of `struct ifreq`.
const NAME_LEN: usize = 16;
const IFREQ_LEN: usize = 40;

/// The name that the kernel replaces by the next free one of this kind.
const ANY_NAME: &str = "tap%d";

/// `INT_MAX`: the default of `tun_struct.sndbuf`.
const NO_LIMIT: i32 = i32::MAX;

/// `struct ifreq` with a name and flags.
fn request(name: &str, flags: u32) -> Vec<u8> {
    let mut request = vec![0; IFREQ_LEN];
    for (to, from) in request.iter_mut().zip(name.bytes().take(NAME_LEN - 1)) {
        *to = from;
    }
    // The member is 16 bits wide.
    if let Some(to) = request.get_mut(NAME_LEN..NAME_LEN + 4) {
        to.copy_from_slice(&(flags & 0xffff).to_ne_bytes());
    }
    request
}

fn name_in(request: &[u8]) -> String {
    let name = request.iter().take(NAME_LEN).take_while(|b| **b != 0);
    String::from_utf8_lossy(&name.copied().collect::<Vec<u8>>()).into_owned()
}

impl Workshop<'_> {
    /// Opens /dev/net/tun and attaches it to the interface that it was attached to. A dry run
    /// attaches nothing.
    pub(super) fn tun(
        &mut self,
        file: &OpenFile,
        place: &mut Place<'_>,
    ) -> Result<i32, RestoreError> {
        let pid = place.pid;
        let FileKind::Tun {
            interface,
            flags,
            vnet_header_len,
            offloads,
            sndbuf,
            detached,
            link,
            ..
        } = &file.kind
        else {
            return Err(RestoreError::Malformed {
                pid,
                what: file.path.clone(),
                why: "it is no tap".into(),
            });
        };
        let access = libc::O_RDWR | libc::O_CLOEXEC | libc::O_NONBLOCK;
        let sys = &mut *place.sys;
        let fd = calls::open(sys, "/dev/net/tun", access).during(pid, || {
            "open /dev/net/tun (is the module tun loaded?)".into()
        })?;
        if interface.is_empty() || self.dry_run {
            return Ok(fd);
        }
        let known = self.taps.name_of(interface).map(str::to_owned);
        let there = Path::new("/sys/class/net").join(interface).exists();
        let attached = match &known {
            Some(name) => attach(sys, fd, name, *flags),
            None => match attach(sys, fd, interface, *flags) {
                // In use, or something else of that name: the VMM knows the queue, not the name.
                Err(Errno(libc::EBUSY | libc::EINVAL)) if there => {
                    attach(sys, fd, ANY_NAME, *flags)
                }
                other => other,
            },
        };
        let name = attached.during(pid, || format!("ioctl(TUNSETIFF) of {interface}"))?;
        let during = |what: &'static str| move || format!("ioctl({what}) of {interface}");
        if *vnet_header_len != 0 {
            sys.ioctl(fd, SETVNETHDRSZ, &mut vnet_header_len.to_ne_bytes())
                .during(pid, during("TUNSETVNETHDRSZ"))?;
        }
        for (flag, call, what) in [
            (VNET_LE, SETVNETLE, "TUNSETVNETLE"),
            (VNET_BE, SETVNETBE, "TUNSETVNETBE"),
        ] {
            if flags & flag != 0 {
                sys.ioctl(fd, call, &mut 1i32.to_ne_bytes())
                    .during(pid, during(what))?;
            }
        }
        sys.ioctl_value(fd, SETOFFLOAD, (*offloads).into())
            .during(pid, during("TUNSETOFFLOAD"))?;
        if *sndbuf > 0 && *sndbuf != NO_LIMIT {
            sys.ioctl(fd, SETSNDBUF, &mut sndbuf.to_ne_bytes())
                .during(pid, during("TUNSETSNDBUF"))?;
        }
        let existed = there && name == *interface;
        if !existed && let Some(link) = link {
            for (id, call, what) in [
                (link.owner, SETOWNER, "TUNSETOWNER"),
                (link.group, SETGROUP, "TUNSETGROUP"),
            ] {
                if let Some(id) = id {
                    sys.ioctl_value(fd, call, id.into())
                        .during(pid, during(what))?;
                }
            }
        }
        if *detached {
            sys.ioctl(fd, SETQUEUE, &mut request("", DETACH))
                .during(pid, during("TUNSETQUEUE"))?;
        }
        if known.is_none() {
            if name != *interface {
                self.notes.push(Fidelity::reconstructed(
                    format!("pid {pid}"),
                    format!("network interface {interface}"),
                    format!("that name is taken on this host: it is {name} here"),
                ));
            }
            let queue = Queue {
                pid,
                file: file.id,
                interface: interface.clone(),
                name,
                existed,
                detached: *detached,
            };
            self.taps.add(queue, &mut self.notes, &file.kind);
        } else if !*detached {
            self.taps.in_service(interface, pid, file.id);
        }
        Ok(fd)
    }
}

/// Attaches a queue; the name of the interface that it is attached to.
fn attach(sys: &mut dyn Syscalls, fd: i32, name: &str, flags: u32) -> Result<String, Errno> {
    let mut request = request(name, flags & FLAGS);
    sys.ioctl(fd, SETIFF, &mut request)?;
    Ok(name_in(&request))
}

//! rtnetlink: how network interfaces are configured. And ioctls of tap queues.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

/// NLM_F_REQUEST, NLM_F_ACK.
const REQUEST: u16 = 1;
const ACK: u16 = 4;
/// NLMSG_ERROR.
const ERROR: u16 = 2;
/// Bytes of `struct nlmsghdr`.
const HEADER: usize = 16;

/// `TUNSETPERSIST`. Linux include/uapi/linux/if_tun.h.
const SETPERSIST: libc::c_ulong = 0x4004_54cb;

/// A conversation with the kernel about interfaces.
#[derive(Debug)]
pub struct Rtnetlink {
    socket: OwnedFd,
    sequence: u32,
}

impl Rtnetlink {
    /// Opens one.
    ///
    /// # Errors
    /// The socket was refused.
    pub fn open() -> io::Result<Self> {
        // SAFETY: plain numbers.
        let fd = unsafe {
            libc::socket(
                libc::AF_NETLINK,
                libc::SOCK_RAW | libc::SOCK_CLOEXEC,
                libc::NETLINK_ROUTE,
            )
        };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self {
            // SAFETY: just made, and nobody else knows it.
            socket: unsafe { OwnedFd::from_raw_fd(fd) },
            sequence: 0,
        })
    }

    /// Sends one request (RTM_*) and waits for its acknowledgement. `flags`: NLM_F_* beside
    /// NLM_F_REQUEST and NLM_F_ACK.
    ///
    /// # Errors
    /// What the kernel answered.
    pub fn request(&mut self, kind: u16, flags: u16, body: &[u8]) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let len = u32::try_from(HEADER + body.len()).map_err(io::Error::other)?;
        let mut message = len.to_ne_bytes().to_vec();
        message.extend(kind.to_ne_bytes());
        message.extend((REQUEST | ACK | flags).to_ne_bytes());
        message.extend(self.sequence.to_ne_bytes());
        message.extend(0u32.to_ne_bytes());
        message.extend(body);
        let fd = self.socket.as_raw_fd();
        // SAFETY: the buffer's own pointer and length.
        let sent = unsafe { libc::send(fd, message.as_ptr().cast(), message.len(), 0) };
        if sent < 0 {
            return Err(io::Error::last_os_error());
        }
        let mut answer = [0u8; 8192];
        // Answers to other requests are none of ours: there are none on this socket.
        for _ in 0..64 {
            // SAFETY: the buffer's own pointer and length.
            let got = unsafe { libc::recv(fd, answer.as_mut_ptr().cast(), answer.len(), 0) };
            let Ok(got) = usize::try_from(got) else {
                return Err(io::Error::last_os_error());
            };
            if let Some(code) = acknowledged(answer.get(..got).unwrap_or_default(), self.sequence) {
                return match code {
                    0 => Ok(()),
                    code => Err(io::Error::from_raw_os_error(-code)),
                };
            }
        }
        Err(io::Error::other("no acknowledgement"))
    }
}

/// The error number (0 or negative) that a datagram carries for request `sequence`.
fn acknowledged(datagram: &[u8], sequence: u32) -> Option<i32> {
    let word = |at: usize| -> Option<u32> {
        let bytes = datagram.get(at..at.checked_add(4)?)?;
        Some(u32::from_ne_bytes(bytes.try_into().ok()?))
    };
    let mut at = 0usize;
    loop {
        let len = usize::try_from(word(at)?).ok()?;
        let kind = u16::try_from(word(at + 4)? & 0xffff).ok()?;
        if kind == ERROR && word(at + 8)? == sequence {
            return Some(word(at + HEADER)?.cast_signed());
        }
        if len < HEADER {
            return None;
        }
        at = at.checked_add(len.checked_next_multiple_of(4)?)?;
    }
}

/// Lets a tap's interface outlive its queues, or no longer.
///
/// # Errors
/// The ioctl was refused.
pub fn set_persistent(tap: &impl AsFd, persistent: bool) -> io::Result<()> {
    let fd = tap.as_fd().as_raw_fd();
    // SAFETY: the argument is a number.
    match unsafe { libc::ioctl(fd, SETPERSIST, libc::c_ulong::from(persistent)) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_acknowledgement_is_found_by_its_number() {
        let mut datagram = Vec::new();
        for (sequence, code) in [(1u32, 0i32), (2, -17)] {
            datagram.extend(36u32.to_ne_bytes());
            datagram.extend(2u16.to_ne_bytes());
            datagram.extend(0u16.to_ne_bytes());
            datagram.extend(sequence.to_ne_bytes());
            datagram.extend(0u32.to_ne_bytes());
            datagram.extend(code.to_ne_bytes());
            datagram.extend([0; 16]);
        }
        assert_eq!(acknowledged(&datagram, 1), Some(0));
        assert_eq!(acknowledged(&datagram, 2), Some(-17));
        assert_eq!(acknowledged(&datagram, 3), None);
        assert_eq!(acknowledged(&[0; 16], 0), None, "no length");
    }

    #[test]
    fn the_kernel_answers() {
        let mut netlink = Rtnetlink::open().expect("a socket");
        // RTM_NEWLINK of an interface with a number that none has.
        let mut body = vec![0; 16];
        body[4..8].copy_from_slice(&0x7fff_fff0u32.to_ne_bytes());
        assert!(netlink.request(16, 0, &body).is_err());
    }
}

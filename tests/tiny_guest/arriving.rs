//! Memory of a restored guest that arrives at its first touch, by KVM or by the guest.

use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use vmrestore::sys::userfaultfd::{Event, Uffd};

/// Pages that have arrived in this process.
pub static ARRIVED: AtomicUsize = AtomicUsize::new(0);

/// Whether all restores of this process are to be so.
pub fn wanted() -> bool {
    std::env::var_os("TINY_LAZY").is_some()
}

/// Takes the memory at an address away, and has it come page by page.
pub fn later(at: u64, bytes: Vec<u8>) {
    let len = bytes.len();
    // SAFETY: the guest's memory, which no Rust value is in; then plain numbers.
    let fd = unsafe {
        let pointer = std::ptr::without_provenance_mut(at as usize);
        assert_eq!(libc::madvise(pointer, len, libc::MADV_DONTNEED), 0);
        let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
        OwnedFd::from_raw_fd(libc::syscall(libc::SYS_userfaultfd, flags) as i32)
    };
    let uffd = Uffd::from(fd);
    uffd.agree().expect("events");
    uffd.register(at, len as u64).expect("registers");
    std::thread::spawn(move || {
        let mut events = Vec::new();
        loop {
            vmrestore::sys::child::poll(&[uffd.as_fd()], -1);
            uffd.read(&mut events).expect("reads");
            for event in events.drain(..) {
                match event {
                    Event::Fault(address) => {
                        let page = (address - at) as usize / 4096 * 4096;
                        let there = uffd.copy(at + page as u64, &bytes[page..page + 4096]).1;
                        if there.is_ok() {
                            ARRIVED.fetch_add(1, Ordering::Relaxed);
                        }
                        let _ = uffd.wake(at + page as u64, 4096);
                    }
                    Event::Unmap { .. } => return,
                    other => panic!("{other:?}"),
                }
            }
        }
    });
}

//! Every positioned read of this process, judged: is what it asks for inside the file?
//!
//! The executable's own `pread64` and `mmap64` come before the C library's, so what the reader asks
//! the kernel for is seen here first. A read that begins or ends beyond the end of a regular file,
//! or a mapping that goes beyond its last page, is counted and remembered.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

static READS: AtomicU64 = AtomicU64::new(0);
static OUTSIDE: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Positioned reads so far: a test that counts none has watched nothing.
pub fn reads() -> u64 {
    READS.load(Relaxed)
}

/// Takes the reads outside a file out, as sentences.
pub fn outside() -> Vec<String> {
    std::mem::take(&mut OUTSIDE.lock().unwrap_or_else(|e| e.into_inner()))
}

fn judge(call: &str, fd: i32, offset: i64, len: usize, round: i64) {
    READS.fetch_add(1, Relaxed);
    let mut size = None;
    // SAFETY: `stat` is plain old data, all zeros is a value of it, and fstat writes one or fails.
    unsafe {
        let mut stat: libc::stat = std::mem::zeroed();
        if libc::fstat(fd, &raw mut stat) == 0 && stat.st_mode & libc::S_IFMT == libc::S_IFREG {
            size = Some(stat.st_size);
        }
    }
    let Some(size) = size else { return };
    let size = (size + round - 1) / round * round;
    let inside = offset >= 0
        && i64::try_from(len)
            .is_ok_and(|len| offset.checked_add(len).is_some_and(|end| end <= size));
    // Files of /proc say that they are empty.
    if !inside && size > 0 {
        let mut all = OUTSIDE.lock().unwrap_or_else(|e| e.into_inner());
        if all.len() < 16 {
            all.push(format!(
                "{call} of {len:#x} bytes at {offset:#x} of a file of {size:#x}"
            ));
        }
    }
}

// SAFETY: has the name, type and meaning of the C library's function: the kernel is asked for the
// same with the same arguments.
#[unsafe(no_mangle)]
unsafe extern "C" fn pread64(fd: i32, buf: *mut libc::c_void, len: usize, offset: i64) -> isize {
    judge("pread", fd, offset, len, 1);
    // SAFETY: the caller vouches for `buf` and `len`, as to pread.
    unsafe { libc::syscall(libc::SYS_pread64, fd, buf, len, offset) as isize }
}

// SAFETY: as for pread64.
#[unsafe(no_mangle)]
unsafe extern "C" fn mmap64(
    addr: *mut libc::c_void,
    len: usize,
    prot: i32,
    flags: i32,
    fd: i32,
    offset: i64,
) -> *mut libc::c_void {
    if flags & libc::MAP_ANONYMOUS == 0 {
        judge("mmap", fd, offset, len, 4096);
    }
    // SAFETY: the caller vouches for what it asks, as to mmap.
    unsafe {
        libc::syscall(libc::SYS_mmap, addr, len, prot, flags, fd, offset) as *mut libc::c_void
    }
}

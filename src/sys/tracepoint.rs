//! System calls of all processes as they begin: perf_event_open(2) of their tracepoints.
//!
//! Numbers and layouts: Linux include/uapi/linux/perf_event.h, kernel/trace/trace.h.

use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use std::ffi::{CString, c_void};
use std::fs::File;
use std::io::{self, Read};
use std::num::NonZeroUsize;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering, fence};

/// Where the kernel shows its tracepoints, if anybody has it mounted.
const MOUNTED: [&str; 2] = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];

/// `PERF_TYPE_TRACEPOINT`.
const TRACEPOINT: u32 = 2;

/// `PERF_SAMPLE_TID`, `_TIME`, `_RAW`.
const SAMPLE: u64 = 1 << 1 | 1 << 2 | 1 << 10;

/// `PERF_FLAG_FD_CLOEXEC`.
const CLOEXEC: u64 = 1 << 3;

/// `PERF_EVENT_IOC_SET_FILTER`.
const SET_FILTER: u64 = 0x4008_2406;

/// `PERF_RECORD_SAMPLE`.
const RECORD_SAMPLE: u32 = 9;

/// `data_head` and `data_tail` in `struct perf_event_mmap_page`. Bytes.
const HEAD: usize = 1024;
const TAIL: usize = 1032;

const PAGE: usize = 4096;

/// Bytes of a CPU's ring, behind its first page: a power of two.
const RING: usize = 16 * PAGE;

/// `struct perf_event_attr`, as of its first version.
#[repr(C)]
struct Attributes {
    kind: u32,
    size: u32,
    config: u64,
    sample_period: u64,
    sample_type: u64,
    read_format: u64,
    flags: u64,
    wakeup: u32,
    breakpoint: u32,
    config1: u64,
}

/// A call as it began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entered {
    /// When, by a clock of the kernel's tracing.
    pub time: u64,
    /// The thread's process, and the thread: 0 if it cannot be seen from here.
    pub pid: i32,
    pub tid: i32,
    /// The first three arguments.
    pub args: [u64; 3],
}

/// One kind of call, heard of on all CPUs from when this was made.
#[derive(Debug)]
pub struct Calls {
    cpus: Vec<Ring>,
}

impl Calls {
    /// Whether this host can tell of a call.
    ///
    /// # Errors
    /// As [`Self::hear`].
    pub fn can_be_heard(call: &str, filter: &str) -> io::Result<()> {
        let id = identity(call)?;
        let first = online()?
            .into_iter()
            .next()
            .ok_or(io::ErrorKind::NotFound)?;
        Ring::of(first, id, filter).map(drop)
    }

    /// From now on each `call` for which `filter` holds (Linux Documentation/trace/events.rst) is heard of.
    ///
    /// # Errors
    /// There is no tracefs, or no such tracepoint in it (CONFIG_FTRACE_SYSCALLS); EACCES, EPERM: without
    /// CAP_PERFMON on the host.
    pub fn hear(call: &str, filter: &str) -> io::Result<Self> {
        let id = identity(call)?;
        let cpus = online()?.into_iter().map(|cpu| Ring::of(cpu, id, filter));
        Ok(Self {
            cpus: cpus.collect::<io::Result<_>>()?,
        })
    }

    /// What has begun since it was last asked, in order. A call of which something can be seen is among
    /// them, unless more were made than the rings hold.
    pub fn take(&mut self) -> Vec<Entered> {
        let mut all = Vec::new();
        for ring in &mut self.cpus {
            ring.take(&mut all);
        }
        all.sort_by_key(|call| call.time);
        all
    }
}

/// What one CPU has to tell.
#[derive(Debug)]
struct Ring {
    _event: OwnedFd,
    map: NonNull<c_void>,
}

// SAFETY: the mapping is this value's own, and no method can be called from two threads at once.
unsafe impl Send for Ring {}

impl Ring {
    fn of(cpu: i32, id: u64, filter: &str) -> io::Result<Self> {
        let attributes = Attributes {
            kind: TRACEPOINT,
            size: size_of::<Attributes>() as u32,
            config: id,
            sample_period: 1,
            sample_type: SAMPLE,
            read_format: 0,
            flags: 0,
            wakeup: 0,
            breakpoint: 0,
            config1: 0,
        };
        let every_process = -1;
        let no_group = -1;
        // SAFETY: `attributes` is of the size that it says, and lives.
        let fd = unsafe {
            libc::syscall(
                libc::SYS_perf_event_open,
                &raw const attributes,
                every_process,
                cpu,
                no_group,
                CLOEXEC,
            )
        };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: just made.
        let event = unsafe { OwnedFd::from_raw_fd(fd as i32) };
        let filter = CString::new(filter)?;
        // SAFETY: the string lives, and the kernel copies it.
        if unsafe { libc::ioctl(event.as_raw_fd(), SET_FILTER, filter.as_ptr()) } < 0 {
            return Err(io::Error::last_os_error());
        }
        let size = NonZeroUsize::new(PAGE + RING).ok_or(io::ErrorKind::InvalidInput)?;
        let both = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping, at an address that the kernel chooses.
        let map = unsafe { mmap(None, size, both, MapFlags::MAP_SHARED, &event, 0) }?;
        Ok(Self { _event: event, map })
    }

    fn place(&self, at: usize) -> &AtomicU64 {
        // SAFETY: each caller's `at` is a multiple of 8 below PAGE + RING, the
        // mapping's length; the kernel writes there by itself.
        unsafe { AtomicU64::from_ptr(self.map.as_ptr().byte_add(at).cast()) }
    }

    /// Eight bytes of the ring, in which records go round.
    fn word(&self, at: u64) -> u64 {
        let at = usize::try_from(at % RING as u64).unwrap_or(0);
        self.place(PAGE + at / 8 * 8).load(Ordering::Relaxed)
    }

    fn take(&mut self, all: &mut Vec<Entered>) {
        // What was written before it cannot be seen otherwise.
        let head = self.place(HEAD).load(Ordering::Acquire);
        let mut at = self.place(TAIL).load(Ordering::Relaxed);
        while head.wrapping_sub(at) >= 8 {
            // `struct perf_event_header`: type, misc, size.
            let header = self.word(at);
            let size = header >> 48;
            if size < 8 || !size.is_multiple_of(8) || size > head.wrapping_sub(at) {
                break;
            }
            let words: Vec<u64> = (1..size / 8).map(|n| self.word(at + 8 * n)).collect();
            if (header & u64::from(u32::MAX)) as u32 == RECORD_SAMPLE {
                all.extend(parse(&words));
            }
            at = at.wrapping_add(size);
        }
        fence(Ordering::SeqCst);
        self.place(TAIL).store(head, Ordering::Release);
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: its own mapping, of this length, which nobody uses any more.
        let _ = unsafe { munmap(self.map, PAGE + RING) };
    }
}

/// The words behind a record's header: PID and TID, the time, the length of the raw part (4 bytes), then
/// that: 8 bytes of all tracepoints, the call's number (4, and 4 of nothing), its arguments.
fn parse(words: &[u64]) -> Option<Entered> {
    // Lengths of 4 bytes have the raw part lie across words.
    let raw = |n: usize| Some(words.get(2 + n)? >> 32 | words.get(3 + n)? << 32);
    let who = *words.first()?;
    Some(Entered {
        time: *words.get(1)?,
        pid: (who as u32).cast_signed(),
        tid: ((who >> 32) as u32).cast_signed(),
        args: [raw(2)?, raw(3)?, raw(4)?],
    })
}

/// The number of the tracepoint where a call begins, with arguments where they are looked for.
fn identity(call: &str) -> io::Result<u64> {
    let directory = directory()?;
    let read = |name: &str| {
        let path = format!("events/syscalls/sys_enter_{call}/{name}");
        let mut text = String::new();
        open_at(&directory, &path)?.read_to_string(&mut text)?;
        io::Result::Ok(text)
    };
    let format = read("format")?;
    for offset in [16, 24, 32] {
        if !format.contains(&format!("\toffset:{offset};\tsize:8;")) {
            return Err(io::Error::other("its tracepoint is of another form"));
        }
    }
    let id = read("id")?;
    id.trim().parse().map_err(io::Error::other)
}

/// The root of a tracefs: one that is mounted, or one of our own that nobody sees.
fn directory() -> io::Result<File> {
    for path in MOUNTED {
        let found = File::open(path);
        if let Ok(found) = found
            && open_at(&found, "events").is_ok()
        {
            return Ok(found);
        }
    }
    /// `FSCONFIG_CMD_CREATE`.
    const CREATE: u32 = 6;
    let none = std::ptr::null::<u8>();
    // SAFETY: the name lives.
    let context = made(unsafe { libc::syscall(libc::SYS_fsopen, c"tracefs".as_ptr(), 1u32) })?;
    // SAFETY: a number, and no strings.
    let done = unsafe {
        libc::syscall(
            libc::SYS_fsconfig,
            context.as_raw_fd(),
            CREATE,
            none,
            none,
            0,
        )
    };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: numbers alone.
    let mount = unsafe { libc::syscall(libc::SYS_fsmount, context.as_raw_fd(), 1u32, 0u32) };
    made(mount).map(File::from)
}

/// What a call made that answers with a descriptor.
fn made(result: i64) -> io::Result<OwnedFd> {
    match i32::try_from(result) {
        // SAFETY: the kernel has just made it for us.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

fn open_at(directory: &File, path: &str) -> io::Result<File> {
    let path = CString::new(path)?;
    let flags = libc::O_RDONLY | libc::O_CLOEXEC;
    // SAFETY: the path lives.
    let fd = unsafe { libc::openat(directory.as_raw_fd(), path.as_ptr(), flags) };
    made(i64::from(fd)).map(File::from)
}

/// CPUs that run: "0-3,8".
fn online() -> io::Result<Vec<i32>> {
    let text = std::fs::read_to_string("/sys/devices/system/cpu/online")?;
    let mut cpus = Vec::new();
    for range in text.trim().split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let number = |text: &str| text.parse::<i32>().map_err(io::Error::other);
        cpus.extend(number(first)?..=number(last)?);
    }
    Ok(cpus)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A call of our own, with its arguments, in the order in which they were made.
    #[test]
    fn calls_are_heard_of() {
        let mut calls = match Calls::hear("madvise", "behavior == 24 || behavior == 9") {
            Ok(calls) => calls,
            Err(error) => {
                eprintln!("SKIPPED: this host does not tell of calls: {error}");
                return;
            }
        };
        for round in 0..2000u64 {
            let at = 0x6000_0000_0000 + round * 4096;
            for advice in [4, 9] {
                // SAFETY: nothing is mapped there.
                unsafe { libc::syscall(libc::SYS_madvise, at, 4096, advice) };
            }
            let own = std::process::id().cast_signed();
            let heard: Vec<Entered> = calls.take().into_iter().filter(|c| c.pid == own).collect();
            let args: Vec<[u64; 3]> = heard.iter().map(|c| c.args).collect();
            assert_eq!(args, [[at, 4096, 9]]);
            assert_eq!(heard[0].tid, nix::unistd::gettid().as_raw());
        }
    }

    #[test]
    fn what_is_cut_off_is_no_call() {
        assert_eq!(parse(&[1, 2, 3, 4, 5, 6]), None);
        assert_eq!(parse(&[]), None);
    }
}

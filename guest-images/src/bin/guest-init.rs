//! PID 1 of the lab's small guest.
//!
//! Draws a nonce at boot that is nowhere but in its memory, then prints one
//! line after the other for ever:
//!
//! ```text
//! L nonce=… n=… sum=… live=… verify=ok seq=… disk=ok simd=ok:…,ok:… clock=ok:… wall=… t=… crc=…
//! ```
//!
//! | field | says |
//! |---|---|
//! | `sum`, `live`, `verify` | 32 MiB of pattern and a ring of changing pages, all read and compared for this line |
//! | `seq`, `disk` | last block written with O_DIRECT to every disk, and whether it and a window of older blocks read back right; `-` without a disk |
//! | `simd` | for each CPU a thread that counts in vector registers: `ok:blocks`, or `stale<k>:blocks` when k blocks lost their registers |
//! | `clock` | `ok:readings`, or which clock went back, by how much and between which CPUs (`clock.rs`) |
//! | `wall` | CLOCK_REALTIME in milliseconds |
//! | `t` | CLOCK_MONOTONIC in milliseconds |
//!
//! It never stops on what is wrong, it says it. The ACPI power button ends it.
//! Options on the kernel's command line: `lab.pause=MILLISECONDS` between
//! lines, `lab.simd=duty|busy|off`; of disks and network: see
//! `disk` and `net`.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use vmrestore_guest_images::clock::{Clocks, nanoseconds};
use vmrestore_guest_images::disk::Disks;
use vmrestore_guest_images::line::sealed;
use vmrestore_guest_images::pattern::{LivePages, Pattern, mix};
use vmrestore_guest_images::{net, ports};

/// Bytes of pattern that every line covers.
const PATTERN_BYTES: usize = 32 << 20;
/// Modules in the initramfs, in order of dependency; absent ones are skipped.
const MODULES: [&str; 19] = [
    "virtio_ring",
    "virtio",
    "virtio_pci_modern_dev",
    "virtio_pci_legacy_dev",
    "virtio_pci",
    "virtio_mmio",
    "virtio_blk",
    "button",
    "evdev",
    "failover",
    "net_failover",
    "virtio_net",
    "virtio_console",
    "virtio-rng",
    "virtio_balloon",
    "scsi_common",
    "scsi_mod",
    "virtio_scsi",
    "sd_mod",
];

static POWER_OFF: AtomicBool = AtomicBool::new(false);

fn main() {
    mount("devtmpfs", "/dev");
    mount("proc", "/proc");
    mount("sysfs", "/sys");
    let options = std::fs::read_to_string("/proc/cmdline").unwrap_or_default();
    let option = |name: &str| {
        options
            .split_whitespace()
            .find_map(|word| word.strip_prefix(name))
            .map(str::to_owned)
    };
    let pause = option("lab.pause=").and_then(|v| v.parse().ok());
    let pause = Duration::from_millis(pause.unwrap_or(100));
    let simd_mode = option("lab.simd=").unwrap_or_else(|| "duty".into());

    let mut serial = open_serial();
    for module in MODULES {
        load_module(module);
    }
    watch_power_button();

    let nonce = draw_nonce();
    let pattern = Pattern::new(nonce, PATTERN_BYTES);
    let mut live = LivePages::new(nonce);
    let disks = Disks::find(nonce, option);
    let counters = start_simd(&simd_mode);
    net::start(nonce, option);
    ports::start(nonce);
    let clocks = Clocks::watch(cpus(), bind_to_cpu);
    let rings = disks.rings();
    let boot = format!("BOOT nonce={nonce:016x} ring={rings}");
    say(&mut serial, &sealed(&boot));

    for n in 1u64.. {
        let (sum, bad) = pattern.verify();
        let (live_sum, live_bad) = live.write_and_verify(n);
        let verify = if bad + live_bad == 0 {
            "ok".to_owned()
        } else {
            format!("BAD:{bad}:{live_bad}")
        };
        let (seq, disk_state) = disks.write_and_verify(nonce, n);
        let simd: Vec<String> = counters.iter().map(|c| c.to_string()).collect();
        let simd = if simd.is_empty() {
            "-".to_owned()
        } else {
            simd.join(",")
        };
        say(
            &mut serial,
            &sealed(&format!(
                "L nonce={nonce:016x} n={n} sum={sum:016x} live={live_sum:016x} verify={verify} \
                 seq={seq} disk={disk_state} simd={simd} clock={clocks} wall={} t={}",
                milliseconds(libc::CLOCK_REALTIME),
                milliseconds(libc::CLOCK_MONOTONIC),
            )),
        );
        if POWER_OFF.load(Ordering::Relaxed) {
            say(&mut serial, &sealed(&format!("OFF nonce={nonce:016x}")));
            power_off(&serial);
        }
        std::thread::sleep(pause);
    }
}

/// Waits until the last byte has left the UART, then turns the machine off.
fn power_off(serial: &File) -> ! {
    // SAFETY: plain system calls on an open descriptor.
    unsafe {
        libc::tcdrain(serial.as_raw_fd());
        libc::sync();
        libc::reboot(libc::RB_POWER_OFF);
    }
    loop {
        std::thread::sleep(Duration::from_secs(1));
    }
}

fn say(serial: &mut File, line: &str) {
    // Nobody could be told of a failure: the serial line is all there is.
    let _ = serial.write_all(line.as_bytes());
}

/// The first serial port, raw: what is written is what arrives.
fn open_serial() -> File {
    let serial = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NOCTTY)
        .open("/dev/ttyS0");
    let Ok(serial) = serial else {
        // Without a serial port there is nothing to do in this guest.
        loop {
            std::thread::sleep(Duration::from_secs(1));
        }
    };
    // SAFETY: termios is plain data, filled by tcgetattr before use.
    unsafe {
        let mut termios: libc::termios = std::mem::zeroed();
        if libc::tcgetattr(serial.as_raw_fd(), &mut termios) == 0 {
            libc::cfmakeraw(&mut termios);
            libc::tcsetattr(serial.as_raw_fd(), libc::TCSANOW, &termios);
        }
    }
    serial
}

fn mount(kind: &str, at: &str) {
    let _ = std::fs::create_dir_all(at);
    let (Ok(kind), Ok(at)) = (CString::new(kind), CString::new(at)) else {
        return;
    };
    // SAFETY: three NUL-terminated strings and no data.
    unsafe {
        libc::mount(
            kind.as_ptr(),
            at.as_ptr(),
            kind.as_ptr(),
            0,
            std::ptr::null(),
        )
    };
}

fn load_module(name: &str) {
    if let Ok(file) = File::open(format!("/mods/{name}.ko")) {
        // SAFETY: an open descriptor and an empty parameter string.
        unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), c"".as_ptr(), 0) };
    }
}

fn draw_nonce() -> u64 {
    let mut bytes = [0u8; 8];
    // SAFETY: the buffer's own pointer and length. GRND_INSECURE: early in the
    // boot the pool may not be ready, and the time stamp is mixed in anyway.
    unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), libc::GRND_INSECURE) };
    // SAFETY: RDTSC is part of every x86-64 CPU.
    let tsc = unsafe { core::arch::x86_64::_rdtsc() };
    mix(u64::from_le_bytes(bytes), tsc)
}

fn milliseconds(clock: libc::clockid_t) -> u64 {
    nanoseconds(clock) / 1_000_000
}

fn cpus() -> usize {
    std::thread::available_parallelism().map_or(1, |n| n.get())
}

/// A thread for each input device: KEY_POWER asks the main loop to end.
fn watch_power_button() {
    const EV_KEY: u16 = 1;
    const KEY_POWER: u16 = 116;
    for index in 0..4 {
        let Ok(mut events) = File::open(format!("/dev/input/event{index}")) else {
            continue;
        };
        std::thread::spawn(move || {
            // struct input_event: timeval (16 bytes), type, code, value.
            let mut event = [0u8; 24];
            while events.read_exact(&mut event).is_ok() {
                let kind = u16::from_le_bytes([event[16], event[17]]);
                let code = u16::from_le_bytes([event[18], event[19]]);
                let value = i32::from_le_bytes([event[20], event[21], event[22], event[23]]);
                if kind == EV_KEY && code == KEY_POWER && value == 1 {
                    POWER_OFF.store(true, Ordering::Relaxed);
                }
            }
        });
    }
}

/// What one counting thread has seen.
#[derive(Default)]
struct SimdCount {
    blocks: AtomicU64,
    stale: AtomicU64,
}

impl std::fmt::Display for SimdCount {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let blocks = self.blocks.load(Ordering::Relaxed);
        match self.stale.load(Ordering::Relaxed) {
            0 => write!(f, "ok:{blocks}"),
            stale => write!(f, "stale{stale}:{blocks}"),
        }
    }
}

/// One thread for each CPU, bound to it, that counts in vector registers.
fn start_simd(mode: &str) -> Vec<Arc<SimdCount>> {
    if mode == "off" {
        return Vec::new();
    }
    let rest = Duration::from_millis(if mode == "busy" { 0 } else { 30 });
    (0..cpus())
        .map(|cpu| {
            let count = Arc::new(SimdCount::default());
            let seen = Arc::clone(&count);
            std::thread::spawn(move || {
                bind_to_cpu(cpu);
                let avx2 = std::is_x86_feature_detected!("avx2");
                let mut from = 1u64;
                loop {
                    let good = if avx2 {
                        // SAFETY: AVX2 was detected above.
                        unsafe { count_ymm(from, ROUNDS) }
                    } else {
                        count_xmm(from, ROUNDS)
                    };
                    from = from.wrapping_add(ROUNDS);
                    seen.blocks.fetch_add(1, Ordering::Relaxed);
                    if !good {
                        seen.stale.fetch_add(1, Ordering::Relaxed);
                    }
                    if !rest.is_zero() {
                        std::thread::sleep(rest);
                    }
                }
            });
            count
        })
        .collect()
}

/// Turns of the counting loop between two checks; about 20 ms where the CPU is
/// emulated.
const ROUNDS: u64 = 400_000;

fn bind_to_cpu(cpu: usize) {
    // SAFETY: cpu_set_t is plain data; CPU_SET stays inside it for the few
    // CPUs of these guests.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set);
    }
}

/// Counts from `from` for `rounds` turns in a general register and, beside it,
/// in four SSE registers that nothing else holds; true if they agree at the end.
fn count_xmm(from: u64, rounds: u64) -> bool {
    let start = [from, from];
    let one = [1u64, 1u64];
    let mut out = [[0u64; 2]; 4];
    let end: u64;
    // SAFETY: reads 16 bytes from `start` and `one`, writes 64 to `out`; all
    // registers touched are declared.
    unsafe {
        core::arch::asm!(
            "movdqu {a}, [{start}]", "movdqa {b}, {a}", "movdqa {c}, {a}", "movdqa {d}, {a}",
            "movdqu {one}, [{onep}]",
            "2:",
            "paddq {a}, {one}", "paddq {b}, {one}", "paddq {c}, {one}", "paddq {d}, {one}",
            "add {count}, 1",
            "sub {left}, 1",
            "jnz 2b",
            "movdqu [{out}], {a}", "movdqu [{out} + 16], {b}",
            "movdqu [{out} + 32], {c}", "movdqu [{out} + 48], {d}",
            a = out(xmm_reg) _, b = out(xmm_reg) _, c = out(xmm_reg) _, d = out(xmm_reg) _,
            one = out(xmm_reg) _,
            start = in(reg) start.as_ptr(), onep = in(reg) one.as_ptr(),
            out = in(reg) out.as_mut_ptr(),
            count = inout(reg) from => end,
            left = inout(reg) rounds => _,
            options(nostack)
        );
    }
    out.iter().flatten().all(|lane| *lane == end)
}

/// As [`count_xmm`], in the full width of AVX registers.
#[target_feature(enable = "avx2")]
fn count_ymm(from: u64, rounds: u64) -> bool {
    let start = [from; 4];
    let one = [1u64; 4];
    let mut out = [[0u64; 4]; 4];
    let end: u64;
    // SAFETY: reads 32 bytes from `start` and `one`, writes 128 to `out`; all
    // registers touched are declared.
    unsafe {
        core::arch::asm!(
            "vmovdqu {a}, [{start}]", "vmovdqa {b}, {a}", "vmovdqa {c}, {a}", "vmovdqa {d}, {a}",
            "vmovdqu {one}, [{onep}]",
            "2:",
            "vpaddq {a}, {a}, {one}", "vpaddq {b}, {b}, {one}",
            "vpaddq {c}, {c}, {one}", "vpaddq {d}, {d}, {one}",
            "add {count}, 1",
            "sub {left}, 1",
            "jnz 2b",
            "vmovdqu [{out}], {a}", "vmovdqu [{out} + 32], {b}",
            "vmovdqu [{out} + 64], {c}", "vmovdqu [{out} + 96], {d}",
            "vzeroupper",
            a = out(ymm_reg) _, b = out(ymm_reg) _, c = out(ymm_reg) _, d = out(ymm_reg) _,
            one = out(ymm_reg) _,
            start = in(reg) start.as_ptr(), onep = in(reg) one.as_ptr(),
            out = in(reg) out.as_mut_ptr(),
            count = inout(reg) from => end,
            left = inout(reg) rounds => _,
            options(nostack)
        );
    }
    out.iter().flatten().all(|lane| *lane == end)
}

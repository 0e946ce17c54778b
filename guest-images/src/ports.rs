//! The guest's other ports: each serial line but the first, and each port of virtio-serial, gives
//! every line that comes back with the nonce; random numbers of the machine are read.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::line::sealed;
use crate::net::RNG_READS;

/// Starts a thread for each port that there is.
pub fn start(nonce: u64) {
    let serial = (1..4).map(|n| format!("/dev/ttyS{n}"));
    let virtio = (1..4).flat_map(|port| (0..2).map(move |n| format!("/dev/vport{n}p{port}")));
    for path in serial.chain(virtio) {
        let port = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NOCTTY)
            .open(&path);
        if let Ok(port) = port
            && (path.contains("vport") || raw(&port))
        {
            std::thread::spawn(move || echo(port, nonce));
        }
    }
    if let Ok(mut random) = File::open("/dev/hwrng") {
        std::thread::spawn(move || {
            let mut bytes = [0; 16];
            loop {
                if random.read_exact(&mut bytes).is_ok() && bytes != [0; 16] {
                    RNG_READS.fetch_add(1, Ordering::Relaxed);
                }
                std::thread::sleep(Duration::from_millis(200));
            }
        });
    }
}

/// Makes a serial line carry what is written and nothing else. False: there is no such UART.
fn raw(port: &File) -> bool {
    // SAFETY: termios is plain data, filled by tcgetattr before use.
    unsafe {
        let mut termios: libc::termios = std::mem::zeroed();
        if libc::tcgetattr(port.as_raw_fd(), &mut termios) != 0 {
            return false;
        }
        libc::cfmakeraw(&mut termios);
        libc::tcsetattr(port.as_raw_fd(), libc::TCSANOW, &termios) == 0
    }
}

/// `V nonce=… n=… q=<the line's first word>` for each line.
fn echo(mut port: File, nonce: u64) {
    let mut line = Vec::new();
    let mut n = 0u64;
    let mut byte = [0];
    loop {
        match port.read(&mut byte) {
            // Nobody has the other end open.
            Ok(0) => std::thread::sleep(Duration::from_millis(50)),
            Ok(_) if byte == *b"\n" => {
                n += 1;
                let text = String::from_utf8_lossy(&line).into_owned();
                let asked = text.split_whitespace().next().unwrap_or("-");
                let answer = sealed(&format!("V nonce={nonce:016x} n={n} q={asked}"));
                let _ = port.write_all(answer.as_bytes());
                line.clear();
            }
            Ok(_) if line.len() < 4096 => line.extend(byte),
            Ok(_) => {}
            Err(_) => return,
        }
    }
}

//! The other side of the guests' networks, sockets and terminals, in the lab's host.
//!
//! | command | does |
//! |---|---|
//! | `hold WHERE [TEXT]` | connects, for two minutes if need be, sends the text as it is, prints what comes; `CLOSED` when it ends |
//! | `serve PORT` | a TCP server that gives each line back, and a UDP port that takes all |
//! | `ask ADDRESS:PORT COUNT MS` | sends so many numbered datagrams, MS milliseconds apart, and prints each answer; fails when there is none |
//! | `line WHERE TEXT` | sends one line, prints the first line of the answer with `q=TEXT`; fails after ten seconds |
//! | `tap NAME [multi]` | makes a persistent tap interface |
//!
//! WHERE is a socket's path, `ADDRESS:PORT`, or a terminal below `/dev`.

use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let done = match words.as_slice() {
        ["hold", at] => hold(at, ""),
        ["hold", at, text] => hold(at, text),
        ["serve", port] => serve(port),
        ["ask", at, count, pause] => ask(at, number(count), number(pause)),
        ["line", at, text] => line(at, text),
        ["tap", name] => tap(name, false),
        ["tap", name, "multi"] => tap(name, true),
        _ => Err(std::io::Error::other("see the head of its source")),
    };
    if let Err(error) = done {
        eprintln!("lab-net {}: {error}", args.join(" "));
        std::process::exit(1);
    }
}

fn number(text: &str) -> u64 {
    text.parse().unwrap_or(1)
}

/// Both directions of a connection.
type Ends = (Box<dyn Read + Send>, Box<dyn Write>);

fn connect(at: &str) -> std::io::Result<Ends> {
    if at.starts_with("/dev/") {
        let port = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NOCTTY)
            .open(at)?;
        // SAFETY: termios is plain data, filled by tcgetattr before use.
        unsafe {
            let mut termios: libc::termios = std::mem::zeroed();
            if libc::tcgetattr(port.as_raw_fd(), &mut termios) == 0 {
                libc::cfmakeraw(&mut termios);
                libc::tcsetattr(port.as_raw_fd(), libc::TCSANOW, &termios);
            }
        }
        return Ok((Box::new(port.try_clone()?), Box::new(port)));
    }
    if at.starts_with('/') {
        let stream = UnixStream::connect(at)?;
        return Ok((Box::new(stream.try_clone()?), Box::new(stream)));
    }
    let stream = TcpStream::connect(at)?;
    Ok((Box::new(stream.try_clone()?), Box::new(stream)))
}

fn hold(at: &str, text: &str) -> std::io::Result<()> {
    // Started before the VMM: what it is to hold comes later.
    let deadline = Instant::now() + Duration::from_secs(120);
    let (mut from, mut to) = loop {
        match connect(at) {
            Err(_) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(200)),
            other => break other?,
        }
    };
    to.write_all(text.as_bytes())?;
    let mut buffer = [0; 4096];
    loop {
        let got = from.read(&mut buffer).unwrap_or(0);
        if got == 0 {
            println!("CLOSED");
            return Ok(());
        }
        let text = String::from_utf8_lossy(buffer.get(..got).unwrap_or_default());
        print!("{text}");
        std::io::stdout().flush()?;
    }
}

fn serve(port: &str) -> std::io::Result<()> {
    let listener = TcpListener::bind(format!("0.0.0.0:{port}"))?;
    let sink = UdpSocket::bind(format!("0.0.0.0:{port}"))?;
    std::thread::spawn(move || {
        let mut buffer = [0; 2048];
        while sink.recv(&mut buffer).is_ok() {}
    });
    for mut stream in listener.incoming().flatten() {
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(got @ 1..) = stream.read(&mut buffer) {
                let sent = buffer.get(..got).map(|bytes| stream.write_all(bytes));
                if !matches!(sent, Some(Ok(()))) {
                    return;
                }
            }
        });
    }
    Ok(())
}

fn ask(at: &str, count: u64, pause: u64) -> std::io::Result<()> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.set_read_timeout(Some(Duration::from_millis(pause.max(1))))?;
    let start = Instant::now();
    let mut answers = 0;
    let mut buffer = [0; 2048];
    for n in 1..=count {
        let asked = Instant::now();
        if let Err(error) = socket.send_to(format!("{n}\n").as_bytes(), at) {
            println!("E {n} {error}");
        }
        loop {
            if let Ok(got) = socket.recv(&mut buffer) {
                answers += 1;
                let text = String::from_utf8_lossy(buffer.get(..got).unwrap_or_default());
                let after = start.elapsed().as_millis();
                println!("{} after={after}", text.trim_end());
            }
            if asked.elapsed().as_millis() >= u128::from(pause) {
                break;
            }
        }
    }
    println!("asked={count} answers={answers}");
    if answers == 0 {
        return Err(std::io::Error::other("no answer"));
    }
    Ok(())
}

fn line(at: &str, text: &str) -> std::io::Result<()> {
    let (from, mut to) = connect(at)?;
    let (give, take) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            let _ = give.send(line);
        }
    });
    to.write_all(format!("{text}\n").as_bytes())?;
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match take.recv_timeout(left) {
            Ok(line) if line.contains(&format!("q={text} ")) => {
                println!("{line}");
                return Ok(());
            }
            Ok(other) => println!("# {other}"),
            Err(_) => return Err(std::io::Error::other("no answer")),
        }
    }
}

fn tap(name: &str, multi: bool) -> std::io::Result<()> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/net/tun")?;
    let mut request = [0u8; 40];
    for (to, from) in request.iter_mut().zip(name.bytes().take(15)) {
        *to = from;
    }
    let flags: u16 = 0x0002 | 0x1000 | 0x4000 | if multi { 0x0100 } else { 0 };
    if let Some(to) = request.get_mut(16..18) {
        to.copy_from_slice(&flags.to_ne_bytes());
    }
    // SAFETY: TUNSETIFF with a struct ifreq, TUNSETPERSIST with a number.
    let done = unsafe {
        libc::ioctl(file.as_raw_fd(), 0x4004_54ca, request.as_mut_ptr()) == 0
            && libc::ioctl(file.as_raw_fd(), 0x4004_54cb, 1) == 0
    };
    if done {
        Ok(())
    } else {
        Err(std::io::Error::last_os_error())
    }
}

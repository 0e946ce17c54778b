//! PID 1 of the lab's host: mounts, loads modules, then does what the lab
//! outside says over a virtio-serial port, and streams files out as they grow.
//!
//! Frames from the lab (a header line, then LEN bytes):
//!
//! | frame | does |
//! |---|---|
//! | `RUN id seconds LEN` + command | runs it under `/bin/sh -c`; answers `DONE` |
//! | `FOLLOW name LEN` + path | streams the file's bytes from its start, and all that come |
//! | `BEAT` | interrupts every CPU of the host |
//! | `OFF` | kills all, unmounts, turns the machine off |
//!
//! Frames to the lab: `HELLO`, `DONE id code outlen errlen` + both outputs
//! (code: the exit code, 128 + signal, or -1 after the time is over),
//! `TAIL name offset LEN` + bytes.
//!
//! Called as `qmp SOCKET COMMAND…` it sends QMP commands to a VMM and prints
//! each answer on one line.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Loaded in this order where present.
const MODULES: [&str; 20] = [
    "irqbypass",
    "kvm",
    "kvm-amd",
    "qemu_fw_cfg",
    "virtio_console",
    "tun",
    "tap",
    "vhost_iotlb",
    "vhost",
    "vhost_net",
    "llc",
    "stp",
    "bridge",
    "vsock",
    "vmw_vsock_virtio_transport_common",
    "vhost_vsock",
    "libcrc32c",
    "xfs",
    "loop",
    "dm-mod",
];
/// Disks by their serial number, and where they go.
const DISKS: [(&str, &str, libc::c_ulong); 3] = [
    ("data", "/data", 0),
    ("dump", "/dump", 0),
    ("tools", "/tools", libc::MS_RDONLY),
];
const PATH: &str = "/tools:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

fn main() {
    let args: Vec<String> = std::env::args().collect();
    if args.first().is_some_and(|name| name.ends_with("qmp")) {
        std::process::exit(qmp(&args[1..]));
    }
    set_up();
    // SAFETY: no other thread runs yet.
    let child = unsafe { libc::fork() };
    if child == 0 {
        if let Err(error) = serve() {
            eprintln!("lab-agent: {error}");
        }
        std::process::exit(1);
    }
    // PID 1 only buries orphans. If the agent itself ends, the lab is told by
    // the console and by its own timeout.
    loop {
        // SAFETY: waits for any child; no status wanted.
        let gone = unsafe { libc::waitpid(-1, std::ptr::null_mut(), 0) };
        if gone == child {
            eprintln!("lab-agent: the agent has ended");
        }
        if gone < 0 {
            std::thread::sleep(Duration::from_secs(1));
        }
    }
}

/// Whether a path is on a file system that lives in memory.
fn is_in_memory(path: &str) -> bool {
    let Ok(path) = std::ffi::CString::new(path) else {
        return false;
    };
    // SAFETY: made of integers; zero is a value of each.
    let mut facts: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: a NUL-terminated path, and a live structure of the call's own type.
    let done = unsafe { libc::statfs(path.as_ptr(), &raw mut facts) };
    const RAMFS_MAGIC: i64 = 0x8584_58f6;
    done == 0 && [libc::TMPFS_MAGIC, RAMFS_MAGIC].contains(&facts.f_type)
}

fn set_up() {
    mount("proc", "proc", "/proc", 0);
    mount("sysfs", "sysfs", "/sys", 0);
    mount("devtmpfs", "devtmpfs", "/dev", 0);
    for (kind, at) in [
        ("devpts", "/dev/pts"),
        ("tmpfs", "/dev/shm"),
        ("tmpfs", "/run"),
        ("tmpfs", "/tmp"),
        ("cgroup2", "/sys/fs/cgroup"),
    ] {
        let _ = std::fs::create_dir_all(at);
        // Where the root is in memory somebody may be using /tmp already: makedumpfile, which saves a
        // dump in a capture kernel, has its notes there.
        if at != "/tmp" || !is_in_memory(at) {
            mount(kind, kind, at, 0);
        }
    }
    for module in MODULES {
        let Ok(file) = File::open(format!("/lib/modules/lab/{module}.ko")) else {
            continue;
        };
        // SAFETY: an open descriptor and an empty parameter string.
        let r = unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), c"".as_ptr(), 0) };
        if r != 0 {
            eprintln!(
                "lab-agent: module {module}: {}",
                std::io::Error::last_os_error()
            );
        }
    }
    let _ = Command::new("/bin/busybox")
        .args(["ip", "link", "set", "lo", "up"])
        .status();
    for (serial, at, flags) in DISKS {
        if let Some(device) = find_disk(serial)
            && !mount(&device, "ext4", at, flags)
        {
            eprintln!(
                "lab-agent: disk {serial}: {}",
                std::io::Error::last_os_error()
            );
        }
    }
    // The root is read-only; what the host must keep over a reboot is on the
    // data disk.
    if std::fs::create_dir_all("/data/host-state").is_ok() {
        mount("/data/host-state", "", "/var/lib", libc::MS_BIND);
    }
    // SAFETY: sets the host name and the ordinary file mode mask.
    unsafe {
        libc::sethostname(c"labhost".as_ptr(), 7);
        libc::umask(0o022);
    }
}

fn mount(source: &str, kind: &str, at: &str, flags: libc::c_ulong) -> bool {
    let (Ok(source), Ok(kind), Ok(at)) =
        (CString::new(source), CString::new(kind), CString::new(at))
    else {
        return false;
    };
    // SAFETY: NUL-terminated strings, no data.
    unsafe {
        libc::mount(
            source.as_ptr(),
            at.as_ptr(),
            kind.as_ptr(),
            flags,
            std::ptr::null(),
        ) == 0
    }
}

/// The order of device names is not stable, the serial number is.
fn find_disk(serial: &str) -> Option<String> {
    let entries = std::fs::read_dir("/sys/block").ok()?;
    entries.flatten().find_map(|entry| {
        let found = std::fs::read_to_string(entry.path().join("serial")).ok()?;
        (found.trim() == serial).then(|| format!("/dev/{}", entry.file_name().to_string_lossy()))
    })
}

/// The port the lab speaks through, by its name.
fn find_port(name: &str) -> Option<String> {
    let entries = std::fs::read_dir("/sys/class/virtio-ports").ok()?;
    entries.flatten().find_map(|entry| {
        let found = std::fs::read_to_string(entry.path().join("name")).ok()?;
        (found.trim() == name).then(|| format!("/dev/{}", entry.file_name().to_string_lossy()))
    })
}

type Out = Arc<Mutex<File>>;
type Followed = Arc<Mutex<BTreeMap<String, (String, u64)>>>;

fn serve() -> std::io::Result<()> {
    let deadline = Instant::now() + Duration::from_secs(30);
    let port = loop {
        if let Some(path) = find_port("lab.control") {
            break OpenOptions::new().read(true).write(true).open(path)?;
        }
        if Instant::now() > deadline {
            return Err(std::io::Error::other("no port lab.control"));
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    let out: Out = Arc::new(Mutex::new(port.try_clone()?));
    let followed: Followed = Arc::default();
    std::fs::create_dir_all("/run/lab")?;
    {
        let (followed, out) = (Arc::clone(&followed), Arc::clone(&out));
        std::thread::spawn(move || follow(&followed, &out));
    }
    send(&out, "HELLO\n", &[])?;
    let (beat, beats) = std::sync::mpsc::channel();
    std::thread::spawn(move || visit_cpus(&beats));
    let mut input = BufReader::new(port);
    loop {
        let mut header = String::new();
        if input.read_line(&mut header)? == 0 {
            // Nobody at the other end right now.
            std::thread::sleep(Duration::from_millis(100));
            continue;
        }
        let words: Vec<&str> = header.split_whitespace().collect();
        let length = words.last().and_then(|w| w.parse().ok()).unwrap_or(0);
        let mut body = vec![0u8; length];
        input.read_exact(&mut body)?;
        let body = String::from_utf8_lossy(&body).into_owned();
        match words.as_slice() {
            ["RUN", id, seconds, _] => {
                let seconds = seconds.parse().unwrap_or(60);
                let (id, out, followed) = (id.to_string(), Arc::clone(&out), Arc::clone(&followed));
                std::thread::spawn(move || run(&id, seconds, &body, &out, &followed));
            }
            ["FOLLOW", name, _] => {
                lock(&followed).insert(name.to_string(), (body, 0));
            }
            ["BEAT"] => {
                let _ = beat.send(());
            }
            ["OFF", ..] => power_off(),
            _ => eprintln!("lab-agent: cannot understand {header:?}"),
        }
    }
}

/// Moves this thread to the next CPU at each beat: there it is woken by an
/// interrupt, as any CPU of a real machine is many times a second. An emulated
/// one that has lost an interrupt in a guest's exit sleeps until the next.
fn visit_cpus(beats: &std::sync::mpsc::Receiver<()>) {
    // SAFETY: asks for a number.
    let cpus = unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) }.max(1) as usize;
    for (number, ()) in beats.iter().enumerate() {
        // SAFETY: a set of CPUs may be all zeros; one CPU below its size is
        // added; the calling thread is bound.
        unsafe {
            let mut set: libc::cpu_set_t = std::mem::zeroed();
            libc::CPU_SET(number % cpus, &mut set);
            libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poison| poison.into_inner())
}

fn send(out: &Out, header: &str, body: &[u8]) -> std::io::Result<()> {
    let mut frame = header.as_bytes().to_vec();
    frame.extend_from_slice(body);
    lock(out).write_all(&frame)
}

/// Runs one command. Its outputs go to files, not pipes: what it leaves
/// running in the background must not keep the answer back.
fn run(id: &str, seconds: u64, command: &str, out: &Out, followed: &Followed) {
    let paths = [format!("/run/lab/{id}.out"), format!("/run/lab/{id}.err")];
    let code = start_and_wait(seconds, command, &paths);
    let (code, note) = match code {
        Ok(code) => (code, String::new()),
        Err(error) => (-2, format!("lab-agent: {error}\n")),
    };
    let stdout = std::fs::read(&paths[0]).unwrap_or_default();
    let mut stderr = std::fs::read(&paths[1]).unwrap_or_default();
    stderr.extend_from_slice(note.as_bytes());
    lock(followed).retain(|_, (path, _)| !paths.contains(path));
    let header = format!("DONE {id} {code} {} {}\n", stdout.len(), stderr.len());
    let _ = send(out, &header, &[stdout, stderr].concat());
    for path in &paths {
        let _ = std::fs::remove_file(path);
    }
}

fn start_and_wait(seconds: u64, command: &str, paths: &[String; 2]) -> std::io::Result<i32> {
    let mut child = Command::new("/bin/sh")
        .args(["-c", command])
        .env_clear()
        .env("PATH", PATH)
        .env("HOME", "/root")
        .env("TERM", "dumb")
        .current_dir("/")
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(File::create(&paths[0])?)
        .stderr(File::create(&paths[1])?)
        .spawn()?;
    let deadline = Instant::now() + Duration::from_secs(seconds);
    loop {
        if let Some(status) = child.try_wait()? {
            let signal = status.signal().map_or(-2, |signal| 128 + signal);
            return Ok(status.code().unwrap_or(signal));
        }
        if Instant::now() > deadline {
            // SAFETY: the process group made above.
            unsafe { libc::kill(-(child.id() as libc::pid_t), libc::SIGKILL) };
            child.wait()?;
            return Ok(-1);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Streams what has been appended to each followed file.
fn follow(followed: &Followed, out: &Out) {
    let mut buffer = vec![0u8; 64 << 10];
    loop {
        let list: Vec<_> = lock(followed)
            .iter()
            .map(|(name, (path, at))| (name.clone(), path.clone(), *at))
            .collect();
        for (name, path, at) in list {
            let Ok(file) = File::open(&path) else {
                continue;
            };
            let Ok(got) = file.read_at(&mut buffer, at) else {
                continue;
            };
            if got == 0 {
                continue;
            }
            if send(out, &format!("TAIL {name} {at} {got}\n"), &buffer[..got]).is_ok()
                && let Some(entry) = lock(followed).get_mut(&name)
            {
                entry.1 = at + got as u64;
            }
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Kills all but PID 1 and this process, writes everything, turns off.
fn power_off() -> ! {
    // SAFETY: plain system calls; nothing of this process is needed after.
    unsafe {
        libc::kill(-1, libc::SIGKILL);
    }
    std::thread::sleep(Duration::from_millis(300));
    // SAFETY: as above.
    unsafe {
        libc::sync();
        for at in [c"/var/lib", c"/data", c"/dump"] {
            if libc::umount2(at.as_ptr(), 0) != 0 {
                eprintln!(
                    "lab-agent: unmount {at:?}: {}",
                    std::io::Error::last_os_error()
                );
            }
        }
        libc::sync();
        libc::reboot(libc::RB_POWER_OFF);
    }
    loop {
        std::thread::sleep(Duration::from_secs(1));
    }
}

/// Speaks QMP: greets, sends each command (a bare name or a JSON object),
/// prints each answer. Exit code 0 if all were answered without an error.
fn qmp(args: &[String]) -> i32 {
    let Some((socket, commands)) = args.split_first() else {
        eprintln!("usage: qmp SOCKET COMMAND…");
        return 2;
    };
    match speak_qmp(Path::new(socket), commands) {
        Ok(true) => 0,
        Ok(false) => 1,
        Err(error) => {
            eprintln!("qmp: {socket}: {error}");
            1
        }
    }
}

fn speak_qmp(socket: &Path, commands: &[String]) -> std::io::Result<bool> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    let mut answers = BufReader::new(stream.try_clone()?);
    let mut greeting = String::new();
    answers.read_line(&mut greeting)?;
    let mut good = true;
    for command in std::iter::once(&"qmp_capabilities".to_owned()).chain(commands) {
        let message = if command.starts_with('{') {
            command.clone()
        } else {
            format!("{{\"execute\":\"{command}\"}}")
        };
        // In one piece: a VMM that has read a whole `quit` closes, and a newline after it would
        // find nobody.
        stream.write_all(format!("{message}\n").as_bytes())?;
        loop {
            let mut answer = String::new();
            let read = answers.read_line(&mut answer);
            // `quit` may close the socket before its answer is read.
            let gone = match &read {
                Ok(count) => *count == 0,
                Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
            };
            if gone {
                return Ok(good && command.contains("quit"));
            }
            read?;
            if answer.starts_with("{\"return\"") || answer.starts_with("{\"error\"") {
                good &= answer.starts_with("{\"return\"");
                if command != "qmp_capabilities" {
                    print!("{answer}");
                }
                break;
            }
        }
    }
    Ok(good)
}

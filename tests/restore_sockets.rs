//! Sockets, terminals and taps of a live process: it is stopped, looked at, killed, and brought
//! back; then others speak to it over the network of this machine.
//!
//! Needs root, a C compiler, and iproute2 for the bridges.

#[path = "common/live.rs"]
mod live;
#[path = "common/living.rs"]
mod living;

use living::{Killed, Living, assert_unbroken, root_or_say_so};
use std::fs;
use std::io::{Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::time::Duration;
use vmrestore::dataset::{
    Blob, Dataset, FileKind, HeardAddress, InterfaceAddress, Master, MulticastGroup, PortVlan,
    TapLink,
};
use vmrestore::restore::{Options, Restored, prepare};
use vmrestore::sys::pidfd;

/// PIDs and names of interfaces are the machine's: one at a time.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

const PATIENCE: Option<Duration> = Some(Duration::from_secs(20));

fn say_and_hear(mut stream: impl Read + Write, text: &str) {
    stream.write_all(text.as_bytes()).expect("write");
    let mut answer = vec![0; text.len()];
    stream.read_exact(&mut answer).expect("an answer");
    assert_eq!(answer, text.as_bytes());
}

/// A number that SOL_SOCKET knows of a socket that process `pid` has.
fn option(pid: i32, fd: i32, name: i32) -> i32 {
    let socket = pidfd::take(pid, fd).expect("the socket");
    let mut value = 0i32;
    let mut len = 4u32;
    // SAFETY: getsockopt writes up to four bytes.
    let asked = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            name,
            (&raw mut value).cast(),
            &raw mut len,
        )
    };
    assert_eq!(asked, 0);
    value
}

#[test]
fn listeners_listen_and_connections_have_ended() {
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(|e| e.into_inner());
    if !root_or_say_so() {
        return;
    }
    let mut living = Living::start("sockets", "sockets");
    let pid = living.pid();
    let port = |name: &str| -> u16 {
        let text = fs::read_to_string(living.dir.join(name)).expect(name);
        text.parse().expect("a port")
    };
    let [tcp4, tcp6, udp, udp6] = ["tcp4", "tcp6", "udp", "udp6"].map(port);
    let mut taken = living.take();
    let mut multicast = None;
    let mut keepalive = None;
    for fd in &taken.dataset.processes[0].fds {
        let file = taken.dataset.files.iter_mut().find(|f| f.id == fd.file);
        if let FileKind::InetSocket(socket) = &mut file.expect("a file").kind {
            // What procfs does not tell.
            socket.keepalive = option(pid, fd.fd, libc::SO_KEEPALIVE) == 1;
            socket.receive_buffer = Some(option(pid, fd.fd, libc::SO_RCVBUF) as u32);
            if socket.local.port() == udp {
                multicast = Some(fd.fd);
                socket.groups = vec![MulticastGroup {
                    group: [239, 1, 2, 3].into(),
                    address: [0; 4].into(),
                    interface: Some("lo".into()),
                }];
            }
            if socket.backlog.is_some() {
                keepalive = Some((fd.fd, socket.receive_buffer));
            }
        }
    }
    living.kill();
    let in_group = || {
        fs::read_to_string("/proc/net/igmp")
            .expect("igmp")
            .contains("030201EF")
    };
    assert!(!in_group());
    let before = living.ticks().len();
    let restored = prepare(&taken.dataset, &taken.memory, &Options::default())
        .expect("prepared")
        .resume()
        .expect("resumed");
    let _killed = Killed(pid);
    assert_eq!(restored[0].fidelity, [], "all comes back as it was");
    assert_unbroken(&living.await_ticks(before + 20), pid);

    // The other ends are gone, and it was told so.
    let log = living.log();
    for name in ["on4", "on6", "onunix"] {
        assert_eq!(
            log.matches(&format!("saw {name} end\n")).count(),
            1,
            "{log}"
        );
    }
    assert!(in_group() && multicast.is_some());
    let (fd, buffer) = keepalive.expect("a listener");
    assert_eq!(option(pid, fd, libc::SO_KEEPALIVE), 1);
    assert_eq!(Some(option(pid, fd, libc::SO_RCVBUF) as u32), buffer);

    // And it takes new ones.
    let stream = TcpStream::connect(("127.0.0.1", tcp4)).expect("TCP");
    stream.set_read_timeout(PATIENCE).expect("a timeout");
    say_and_hear(stream, "over IPv4");
    let stream = TcpStream::connect(("::1", tcp6)).expect("TCP over IPv6");
    stream.set_read_timeout(PATIENCE).expect("a timeout");
    say_and_hear(stream, "over IPv6");
    let stream = UnixStream::connect(living.dir.join("socket")).expect("UNIX");
    stream.set_read_timeout(PATIENCE).expect("a timeout");
    say_and_hear(stream, "over UNIX");
    for (here, there) in [("127.0.0.1", udp), ("::1", udp6)] {
        let socket = UdpSocket::bind((here, 0)).expect("UDP");
        socket.set_read_timeout(PATIENCE).expect("a timeout");
        socket.send_to(b"datagram", (here, there)).expect("sent");
        let mut answer = [0; 20];
        let got = socket.recv(&mut answer).expect("an answer");
        assert_eq!(&answer[..got], b"datagram");
    }

    // The terminal has its number, its window, and is raw: what is sent is what comes back.
    let pty = fs::read_link(living.dir.join("pty")).expect("pty");
    let terminal = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NOCTTY)
        .open(&pty)
        .expect("the slave");
    let mut window = [0u16; 4];
    // SAFETY: TIOCGWINSZ writes four words of 16 bits.
    let asked = unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCGWINSZ, &raw mut window) };
    assert_eq!((asked, window[0], window[1]), (0, 33, 99));
    say_and_hear(terminal, "a\nb\x04c");
}

/// What the tap of the program `tapped` is to have been on the dead host.
fn link(dataset: &mut Dataset, link: TapLink, kept: bool) {
    for file in &mut dataset.files {
        if let FileKind::Tun {
            link: l, persist, ..
        } = &mut file.kind
        {
            *l = Some(Box::new(link.clone()));
            *persist = kept;
        }
    }
}

const TAP: &str = "vmrtest0";
const BRIDGE: &str = "vmrtbr0";
const GUEST: [u8; 6] = [0x52, 0x54, 0, 0xaa, 0xbb, 0xcc];

/// Interfaces of a test, gone when it ends.
struct Interfaces(Vec<&'static str>);

impl Interfaces {
    /// `None`, and says so, where the test cannot be made.
    fn new(bridge: &str) -> Option<Self> {
        if !Path::new("/dev/net/tun").exists() {
            eprintln!("SKIPPED: this machine has no /dev/net/tun");
            return None;
        }
        let options = ["link", "add", BRIDGE, "type", "bridge"];
        let made = Command::new("ip")
            .args(options)
            .args(bridge.split_ascii_whitespace())
            .output();
        match made {
            Ok(output) if output.status.success() => {
                ip("link set vmrtbr0 up");
                Some(Self(vec![BRIDGE]))
            }
            other => {
                eprintln!("SKIPPED: this machine makes no bridges: {other:?}");
                None
            }
        }
    }
}

impl Drop for Interfaces {
    fn drop(&mut self) {
        for name in &self.0 {
            let _ = Command::new("ip").args(["link", "del", name]).output();
        }
    }
}

fn ip(line: &str) -> String {
    tool("ip", line)
}

fn tool(program: &str, line: &str) -> String {
    let output = Command::new(program)
        .args(line.split(' '))
        .output()
        .expect(program);
    assert!(output.status.success(), "{program} {line}: {output:?}");
    String::from_utf8(output.stdout).expect("text")
}

fn attribute(name: &str) -> String {
    let path = format!("/sys/class/net/{TAP}/{name}");
    fs::read_to_string(&path).expect(&path).trim().to_owned()
}

fn on_bridge() -> TapLink {
    TapLink {
        mac: Blob(vec![0xfe, 0x54, 0, 0xaa, 0xbb, 0xcc]),
        mtu: 1400,
        up: true,
        tx_queue_len: 777,
        owner: Some(12),
        group: Some(34),
        master: Some(Master {
            name: BRIDGE.into(),
            kind: "bridge".into(),
            // Learning and flooding as usual, and isolated from other guests.
            port_flags: 0x48e0 | 1 << 16,
            vlans: vec![PortVlan {
                id: 1,
                pvid: true,
                untagged: true,
            }],
        }),
        addresses: vec![
            InterfaceAddress {
                address: [192, 0, 2, 77].into(),
                prefix: 28,
                peer: None,
            },
            InterfaceAddress {
                address: "2001:db8::77".parse().expect("an address"),
                prefix: 64,
                peer: None,
            },
        ],
        heard: vec![HeardAddress {
            mac: GUEST,
            vlan: 0,
        }],
    }
}

/// `tapped`, stopped, looked at and killed.
fn tapped(living: &mut Living) -> live::Taken {
    let taken = living.take();
    living.kill();
    assert!(!Path::new("/sys/class/net").join(TAP).exists());
    taken
}

fn resumed(taken: &live::Taken) -> Vec<Restored> {
    prepare(&taken.dataset, &taken.memory, &Options::default())
        .expect("prepared")
        .resume()
        .expect("resumed")
}

#[test]
fn a_tap_is_on_its_bridge_again_and_the_guest_announced() {
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(|e| e.into_inner());
    if !root_or_say_so() {
        return;
    }
    let Some(mut interfaces) = Interfaces::new("") else {
        return;
    };
    let mut living = Living::start("bridged", "tapped");
    let pid = living.pid();
    let mut taken = tapped(&mut living);
    link(&mut taken.dataset, on_bridge(), true);

    // Nothing is left of a restore that comes to nothing.
    let prepared = prepare(&taken.dataset, &taken.memory, &Options::default()).expect("prepared");
    drop(prepared);
    assert!(!Path::new("/sys/class/net").join(TAP).exists());
    let dry = Options {
        dry_run: true,
        ..Options::default()
    };
    let prepared = prepare(&taken.dataset, &taken.memory, &dry).expect("prepared");
    assert!(!Path::new("/sys/class/net").join(TAP).exists(), "a dry run");
    prepared.resume().expect("a dry run");

    let restored = resumed(&taken);
    let killed = Killed(pid);
    assert_eq!(restored[0].fidelity, []);
    assert_eq!(attribute("address"), "fe:54:00:aa:bb:cc");
    assert_eq!(attribute("mtu"), "1400");
    assert_eq!(attribute("tx_queue_len"), "777");
    assert_eq!(
        (attribute("owner"), attribute("group")),
        ("12".into(), "34".into())
    );
    assert_eq!(attribute("brport/isolated"), "1");
    let addresses = ip("addr show vmrtest0");
    for wanted in ["192.0.2.77/28", "2001:db8::77/64", "master vmrtbr0", ",UP"] {
        assert!(addresses.contains(wanted), "{wanted}: {addresses}");
    }
    // Nobody has sent anything through it but vmrestore.
    let heard = tool("bridge", "fdb show br vmrtbr0");
    assert!(
        heard.contains("52:54:00:aa:bb:cc dev vmrtest0 master vmrtbr0"),
        "{heard}"
    );
    let before = living.ticks().len();
    assert_unbroken(&living.await_ticks(before + 10), pid);

    // It is persistent as it was.
    interfaces.0.push(TAP);
    drop(killed);
    let gone = (0..500).any(|_| {
        std::thread::sleep(Duration::from_millis(10));
        !Path::new(&format!("/proc/{pid}/exe")).exists()
    });
    assert!(gone && Path::new("/sys/class/net").join(TAP).exists());
}

#[test]
fn a_port_is_in_its_vlans_again() {
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(|e| e.into_inner());
    if !root_or_say_so() {
        return;
    }
    let Some(_interfaces) = Interfaces::new("vlan_filtering 1") else {
        return;
    };
    let mut living = Living::start("vlans", "tapped");
    let mut taken = tapped(&mut living);
    let mut wanted = on_bridge();
    wanted.heard = [20, 30]
        .map(|vlan| HeardAddress { mac: GUEST, vlan })
        .into();
    if let Some(master) = &mut wanted.master {
        master.vlans = [(20, true), (30, false)]
            .map(|(id, own)| PortVlan {
                id,
                pvid: own,
                untagged: own,
            })
            .into();
    }
    link(&mut taken.dataset, wanted, false);
    let restored = resumed(&taken);
    let _killed = Killed(living.pid());
    assert_eq!(restored[0].fidelity, []);
    let vlans = tool("bridge", "-c vlan show dev vmrtest0");
    let vlans: Vec<&str> = vlans.split_ascii_whitespace().skip(3).collect();
    assert_eq!(
        vlans,
        ["20", "PVID", "Egress", "Untagged", "30"].as_slice()[..].to_vec(),
        "{vlans:?}"
    );
    let heard = tool("bridge", "fdb show br vmrtbr0");
    for vlan in [20, 30] {
        let line = format!("52:54:00:aa:bb:cc dev vmrtest0 vlan {vlan} master vmrtbr0");
        assert!(heard.contains(&line), "{heard}");
    }
}

#[test]
fn an_interface_that_is_there_is_used_and_left_as_it_was_found() {
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(|e| e.into_inner());
    if !root_or_say_so() {
        return;
    }
    let Some(mut interfaces) = Interfaces::new("") else {
        return;
    };
    let mut living = Living::start("persistent", "tapped");
    let pid = living.pid();
    let mut taken = tapped(&mut living);
    link(&mut taken.dataset, on_bridge(), true);
    ip("tuntap add vmrtest0 mode tap vnet_hdr");
    interfaces.0.push(TAP);
    let (address, mtu) = (attribute("address"), attribute("mtu"));
    drop(prepare(&taken.dataset, &taken.memory, &Options::default()).expect("prepared"));
    assert!(!ip("addr show vmrtest0").contains("master"));

    let restored = resumed(&taken);
    let _killed = Killed(pid);
    assert_eq!(restored[0].fidelity, []);
    assert_eq!((attribute("address"), attribute("mtu")), (address, mtu));
    assert!(ip("addr show vmrtest0").contains("master vmrtbr0"));
    let before = living.ticks().len();
    assert_unbroken(&living.await_ticks(before + 10), pid);
}

#[test]
fn what_the_network_lacks_here_is_said() {
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(|e| e.into_inner());
    if !root_or_say_so() {
        return;
    }
    let Some(mut interfaces) = Interfaces::new("") else {
        return;
    };
    let mut living = Living::start("lacking", "tapped");
    let mut taken = tapped(&mut living);
    let mut elsewhere = on_bridge();
    if let Some(master) = &mut elsewhere.master {
        master.name = "vmrtbr9".into();
    }
    link(&mut taken.dataset, elsewhere, false);
    let prepared = prepare(&taken.dataset, &taken.memory, &Options::default()).expect("prepared");
    let said = &prepared.processes()[0].fidelity;
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(said[0].how.contains("vmrtbr9"), "{said:?}");
    drop(prepared);

    // The name is something else's: the process gets another, on the same bridge.
    ip("link add vmrtest0 type bridge");
    interfaces.0.push(TAP);
    link(&mut taken.dataset, on_bridge(), false);
    let prepared = prepare(&taken.dataset, &taken.memory, &Options::default()).expect("prepared");
    let said = &prepared.processes()[0].fidelity;
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(said[0].how.contains("is taken on this host"), "{said:?}");
}

#[test]
fn queues_of_one_tap_are_its_queues_again_and_one_stays_out_of_service() {
    /// IFF_MULTI_QUEUE.
    const MULTI_QUEUE: u32 = 0x0100;
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(|e| e.into_inner());
    if !root_or_say_so() {
        return;
    }
    let Some(_interfaces) = Interfaces::new("") else {
        return;
    };
    let mut living = Living::start("queues", "queues");
    let pid = living.pid();
    let mut taken = tapped(&mut living);
    link(&mut taken.dataset, on_bridge(), false);
    let mut queues = 0;
    for fd in &taken.dataset.processes[0].fds {
        let file = taken.dataset.files.iter_mut().find(|f| f.id == fd.file);
        if let FileKind::Tun {
            flags, detached, ..
        } = &mut file.expect("a file").kind
        {
            // procfs does not say which queue is out of service; the program does.
            *detached = queues == 1;
            *flags |= MULTI_QUEUE;
            queues += 1;
        }
    }
    assert_eq!(queues, 2);
    let restored = resumed(&taken);
    let _killed = Killed(pid);
    assert_eq!(restored[0].fidelity, []);
    let before = living.ticks().len();
    assert_unbroken(&living.await_ticks(before + 10), pid);
    let heard = tool("bridge", "fdb show br vmrtbr0");
    assert!(heard.contains("52:54:00:aa:bb:cc dev vmrtest0"), "{heard}");
}

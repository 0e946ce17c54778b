//! Guests that differ in their network, sockets and character devices.
//!
//! Guests with a tap are on the bridge `br0`, on which the host is 10.9.0.1; the host's port 7007
//! has a server that gives back what it is sent and takes every datagram. Guests keep a connection
//! to it and send it datagrams without a pause.

use super::{microvm, pc, q35};
use crate::guest::Guest;

/// At every boot: the bridge, a script for QEMU that makes a tap a port of it, the server.
const HOST: &str = "[ -e /sys/class/net/br0 ] || { brctl addbr br0; \
     ip addr add 10.9.0.1/24 dev br0; ip link set br0 up; }; \
     printf '#!/bin/sh\\nip link set $1 up\\nbrctl addif br0 $1\\n' > /run/br0-up; \
     chmod +x /run/br0-up; \
     pidof lab-net > /dev/null || { lab-net serve 7007 > /dev/null 2>&1 & }";
/// Of VNC: QEMU wants a file of key names, whatever is in it.
const KEYMAP: &str = "mkdir -p /run/qemu/keymaps; echo 'map 0x409' > /run/qemu/keymaps/en-us";

/// See the names.
pub(super) fn flavours() -> Vec<Guest> {
    let by_vmm = "script=/run/br0-up,downscript=no";
    vec![
        tap("tap", pc(), &format!("{by_vmm},vhost=off"), "", 11),
        tap("vhost-net", q35(), &format!("{by_vmm},vhost=on"), "", 12),
        tap(
            "tap-queues",
            pc(),
            &format!("{by_vmm},vhost=off,queues=2"),
            ",mq=on,vectors=6",
            13,
        ),
        with_host(
            tap(
                "vhost-queues",
                q35(),
                "script=no,downscript=no,vhost=on,queues=2",
                ",mq=on,vectors=6",
                14,
            ),
            // As libvirt or an administrator has it: the interface is there before the VMM.
            "[ -e /sys/class/net/tap-{name} ] || { lab-net tap tap-{name} multi && \
             brctl addif br0 tap-{name} && ip link set tap-{name} up; }",
        ),
        tap(
            "tap-microvm",
            microvm(),
            &format!("{by_vmm},vhost=off"),
            "",
            15,
        ),
        Guest {
            flavour: "user-net".into(),
            options: "-netdev user,id=n0,hostfwd=udp::7107-:7,hostfwd=tcp::7107-:7 \
                      -device virtio-net-pci,netdev=n0,romfile="
                .into(),
            append: "lab.net=10.0.2.15/24 lab.peer=10.0.2.2:7007 lab.flood=10.0.2.2:7007".into(),
            host_setup: HOST.into(),
            prepare: "lab-net hold 127.0.0.1:7107 > /data/{name}.tcp 2>&1 &".into(),
            ..pc()
        },
        vlan(),
        sockets(),
    ]
}

/// A guest with a tap on the host's bridge.
fn tap(flavour: &str, guest: Guest, options: &str, device: &str, last: u8) -> Guest {
    let kind = guest.board.device("virtio-net");
    // No option ROM: nothing boots over the network.
    let rom = if kind.ends_with("pci") {
        ",romfile="
    } else {
        ""
    };
    Guest {
        flavour: flavour.into(),
        options: format!(
            "-netdev tap,id=n0,ifname=tap-{{name}},{options} \
             -device {kind},netdev=n0{rom},mac=52:54:00:00:00:{last}{device}"
        ),
        append: format!("lab.net=10.9.0.{last}/24 lab.peer=10.9.0.1:7007 lab.flood=10.9.0.1:7007"),
        host_setup: HOST.into(),
        prepare: format!("lab-net hold 10.9.0.{last}:7 > /data/{{name}}.tcp 2>&1 &"),
        ..guest
    }
}

fn with_host(guest: Guest, more: &str) -> Guest {
    Guest {
        host_setup: format!("{HOST}; {more}"),
        ..guest
    }
}

/// A guest whose tap is in VLAN 20 of a bridge, which after the reboot puts new ports into VLAN 30.
fn vlan() -> Guest {
    let bridge = "[ -e /sys/class/net/br1 ] || { brctl addbr br1; \
         cd /sys/class/net/br1/bridge; \
         if [ -e /dump/hostdump ]; then echo 30; else echo 20; fi > default_pvid; \
         echo 1 > vlan_filtering; cd /; \
         ip addr add 10.9.2.1/24 dev br1; ip link set br1 up; }; \
         printf '#!/bin/sh\nip link set $1 up\nbrctl addif br1 $1\n' > /run/br1-up; \
         chmod +x /run/br1-up";
    let guest = tap(
        "tap-vlan",
        pc(),
        "script=/run/br1-up,downscript=no,vhost=on",
        "",
        16,
    );
    Guest {
        append: "lab.net=10.9.2.16/24".into(),
        prepare: String::new(),
        ..with_host(guest, bridge)
    }
}

/// Every kind of socket and terminal that a VMM has, each with somebody at its other end: one is in
/// the middle of a QMP command, one in the middle of VNC's greeting.
fn sockets() -> Guest {
    let options = [
        "-L /run/qemu -L /usr/share/qemu -device VGA",
        "-vnc 127.0.0.1:1 -vnc unix:/run/{name}.vnc,id=second",
        "-monitor unix:/run/{name}.monitor,server=on,wait=off",
        "-chardev socket,id=q1,host=127.0.0.1,port=7201,server=on,wait=off",
        "-mon chardev=q1,mode=control",
        "-chardev socket,id=s1,path=/run/{name}.ttyS1,server=on,wait=off -serial chardev:s1",
        "-chardev pty,id=s2 -serial chardev:s2",
        "-chardev socket,id=s3,host=::1,port=7203,server=on,wait=off,telnet=off -serial chardev:s3",
        "-device virtio-serial-pci",
        "-chardev socket,id=v0,path=/run/{name}.port,server=on,wait=off",
        "-device virtserialport,chardev=v0,name=lab",
        "-object rng-random,filename=/dev/urandom,id=r0 -device virtio-rng-pci,rng=r0",
        "-device virtio-balloon-pci",
        "-device vhost-vsock-pci,guest-cid=7",
        "-netdev user,id=n0,hostfwd=udp::7108-:7 -device virtio-net-pci,netdev=n0,romfile=",
        "-netdev socket,id=n1,listen=127.0.0.1:7204 -device virtio-net-pci,netdev=n1,romfile=",
        "-netdev dgram,id=n2,local.type=inet,local.host=127.0.0.1,local.port=7205,\
         remote.type=inet,remote.host=127.0.0.1,remote.port=7206 \
         -device virtio-net-pci,netdev=n2,romfile=",
    ];
    let holders = [
        (
            "/run/{name}.qmp",
            "{\"execute\":\"qmp_capabilities\"}\n{\"execute\":\"query-st",
        ),
        ("127.0.0.1:7201", "{\"execute\":\"qmp_capabilities\"}\n"),
        ("127.0.0.1:5901", "RFB 003.008\n"),
        ("/run/{name}.vnc", "RFB 003.008\n"),
        ("/run/{name}.monitor", ""),
        ("/run/{name}.ttyS1", "before\n"),
        ("[::1]:7203", "before\n"),
        ("/run/{name}.port", "before\n"),
        ("127.0.0.1:7204", ""),
    ]
    .map(|(at, text)| format!("lab-net hold {at} '{text}' > /dev/null 2>&1 &"));
    Guest {
        flavour: "sockets".into(),
        options: options.join(" "),
        // An address starts what answers in the guest.
        append: "lab.net=10.0.2.15/24".into(),
        host_setup: KEYMAP.into(),
        prepare: format!("({KEYMAP}); {}", holders.join(" ")),
        ..q35()
    }
}

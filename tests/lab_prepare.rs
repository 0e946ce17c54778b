//! A host that was made ready with `vmrestore prepare` panics: in an initramfs that has no root file
//! system, and by the hook in Debian's own kdump-tools, guests go on, the dump is saved while they run,
//! and the machine is reset when they have gone.
//!
//! Needs the lab (docs/lab.md): `scripts/test` runs these with `--include-ignored`.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use vmrestore_lab::crash::Extra;
use vmrestore_lab::debian::Debian;
use vmrestore_lab::guest::Guest;
use vmrestore_lab::{Aftermath, Hardware, Lab, Machine, Rebooted, Scenario, flavours};

const MINUTE: Duration = Duration::from_secs(60);
/// Lines that each guest must print after its restore.
const LINES: usize = 20;
/// In the host that is well, its root can be written to; what is written is gone with the machine.
const WRITABLE: &str = "mount -o remount,rw /";

fn scenario(guests: Vec<Guest>, memory_mib: u32, crashkernel_mib: u32) -> Result<Scenario> {
    let scenario = Scenario::named("in-place").context("no such scenario")?;
    Ok(Scenario {
        hardware: Hardware {
            memory_mib,
            crashkernel_mib,
            ..Hardware::default()
        },
        guests,
        ..scenario
    })
}

/// A pc with a disk and a tap, which is a port of a bridge that its administrator made.
fn on_a_bridge() -> Result<Guest> {
    let guest = flavours::named("pc").context("no such flavour")?;
    let options = "-netdev tap,id=n0,ifname=tap-{name},script=/run/br0-up,downscript=no,vhost=off \
                   -device virtio-net-pci,netdev=n0,romfile=,mac=52:54:00:00:00:11";
    let bridge = "brctl addbr br0; ip addr add 10.9.0.1/24 dev br0; ip link set br0 up; \
                  printf '#!/bin/sh\\nip link set $1 up\\nbrctl addif br0 $1\\n' > /run/br0-up; \
                  chmod +x /run/br0-up";
    Ok(Guest {
        options: options.into(),
        append: "lab.net=10.9.0.11/24".into(),
        prepare: bridge.into(),
        ..guest.numbered(1)
    })
}

fn vmrestore() -> (String, PathBuf) {
    let path = Path::new(env!("CARGO_BIN_EXE_vmrestore")).to_owned();
    ("vmrestore".into(), path)
}

/// All modules of the host's kernel, for the dump disk.
fn modules(lab: &Lab) -> Result<Vec<(String, PathBuf)>> {
    let kernel = Debian::new(&lab.dir).kernel()?;
    let mut found = Vec::new();
    let mut left = vec![kernel.modules.clone()];
    while let Some(directory) = left.pop() {
        for entry in std::fs::read_dir(&directory)? {
            let path = entry?.path();
            if path.is_dir() {
                left.push(path);
            } else {
                let inside = path.strip_prefix(&kernel.modules)?;
                found.push((format!("modules/{}", inside.display()), path));
            }
        }
    }
    Ok(found)
}

/// Runs commands in the host that is well; all must do what they should.
fn well(machine: &mut Machine, commands: &[&str]) -> Result<String> {
    let mut said = String::new();
    for command in commands {
        let output = machine.agent.run(command, 5 * MINUTE)?;
        println!("$ {command}\n{}{}", output.stdout, output.stderr);
        said += &output.success(command)?.stdout;
    }
    Ok(said)
}

/// What `check` does not like of what was prepared; it must have looked.
fn prepared_wrongly(machine: &mut Machine) -> Result<Vec<String>> {
    let output = machine.agent.run("vmrestore --json check", 5 * MINUTE)?;
    let said: Value = serde_json::from_str(&output.stdout)
        .with_context(|| format!("{}{}", output.stdout, output.stderr))?;
    let findings = said["findings"].as_array().into_iter().flatten();
    let ours: Vec<&Value> = findings.filter(|f| f["what"] == "prepared").collect();
    ensure!(ours.len() >= 5, "{said:#}");
    let wrong = ours.iter().filter(|f| f["verdict"] == "bad");
    Ok(wrong.map(|f| f["found"].to_string()).collect())
}

/// Waits until a file of the host has these words in it.
fn wait_for(host: &mut Rebooted, words: &str, file: &str, limit: Duration) -> Result<String> {
    let deadline = Instant::now() + limit;
    loop {
        let said = host.run(&format!("cat {file}"), MINUTE)?.stdout;
        if said.contains(words) {
            return Ok(said);
        }
        ensure!(
            Instant::now() < deadline,
            "{file} has no {words:?}:\n{said}"
        );
        std::thread::sleep(Duration::from_secs(1));
    }
}

/// Moves a guest away, so far as this machine can tell: its VMM ends.
fn end_guest(host: &mut Rebooted, name: &str) -> Result<()> {
    let end = format!("{}kill $(basename $(vmm))", Guest::vmm_function(name));
    host.run(&end, MINUTE)?.success(&end).map(drop)
}

fn judged_good(aftermath: &Aftermath) -> Result<()> {
    for (name, verdict) in aftermath.verdicts(LINES) {
        println!("{name}: {verdict}");
        ensure!(verdict.is_good(), "{name}: {verdict}");
    }
    Ok(())
}

#[test]
#[ignore = "needs the lab: scripts/test"]
fn guests_go_on_without_a_root_file_system() -> Result<()> {
    const PREPARE: &str = "vmrestore --json prepare --initramfs /dump/in-place.initrd \
        --modules /dump/modules --dump-directory /dump/crash --module virtio_console \
        --run /usr/sbin/lab-agent";
    let lab = Lab::prepare()?;
    let mut planned = String::new();
    let mut extra = Extra {
        tools: vec![vmrestore()],
        luggage: modules(&lab)?,
        ..Extra::default()
    };
    extra.alive = Some(Box::new(|machine| {
        let dry = well(machine, &[WRITABLE, &format!("{PREPARE} --dry-run")])?;
        let dry: Value = serde_json::from_str(&dry)?;
        ensure!(dry["written"].is_null(), "{dry:#}");
        well(
            machine,
            &["[ ! -e /etc/vmrestore ] && [ ! -e /dump/in-place.initrd ]"],
        )?;
        planned = well(machine, &[PREPARE])?;
        ensure!(prepared_wrongly(machine)?.is_empty(), "{planned}");
        well(machine, &["mv /dump/in-place.initrd /dump/away"])?;
        let wrong = prepared_wrongly(machine)?;
        ensure!(
            wrong.len() == 1 && wrong[0].contains("in-place.initrd"),
            "{wrong:#?}"
        );
        well(machine, &["mv /dump/away /dump/in-place.initrd"])?;
        let load = "kexec -p /boot/vmlinuz --initrd=/dump/in-place.initrd --append='console=ttyS0 \
                    loglevel=4 panic=1 tsc=reliable nr_cpus=1 irqpoll reset_devices'";
        well(machine, &["ls -l /dump/in-place.initrd", load, "sync"]).map(drop)
    }));
    let scenario = scenario(vec![on_a_bridge()?], 2304, 640)?;
    let mut host = lab.in_capture_kernel(&scenario, extra, &lab.new_run())?;
    host.follow_all()?;
    let planned: Value = serde_json::from_str(&planned)?;
    ensure!(planned["lacking"] == serde_json::json!([]), "{planned:#}");
    ensure!(planned["plan"]["guests"][0]["name"] == "g1", "{planned:#}");

    host.wait_new_lines("g1", LINES, 3 * MINUTE)?;
    let silent = host.silence("g1").context("not followed")?;
    println!("g1: silent for {:.1} s", silent.as_secs_f64());
    // The host's root is not there: what is, prepare has packed.
    let root = "grep -q ' / / .* - rootfs' /proc/self/mountinfo && [ ! -e /usr/bin/qemu-img ] && \
                [ -e /usr/bin/qemu-system-x86_64 ] && [ $(readlink /proc/1/exe) = /usr/sbin/vmrestore ]";
    host.run(root, MINUTE)?.success(root)?;
    // Its tap is a port of the bridge, which has its address.
    let ping = "ping -c 3 -w 60 10.9.0.11";
    println!("{}", host.run(ping, 2 * MINUTE)?.success(ping)?.stdout);
    let log = "/var/lib/vmrestore/after-panic.log";
    println!(
        "{}",
        wait_for(&mut host, "the dump is saved", log, 8 * MINUTE)?
    );
    let list = "vmrestore list /dump/crash/*/dump.*";
    let listed = host.run(list, 3 * MINUTE)?.success(list)?;
    ensure!(listed.stdout.contains("qemu-system"), "{}", listed.stdout);
    host.wait_new_lines("g1", 2 * LINES, 3 * MINUTE)?;
    end_guest(&mut host, "g1")?;
    judged_good(&host.ended(3 * MINUTE)?)
}

#[test]
#[ignore = "needs the lab: scripts/test"]
fn kdump_tools_saves_the_dump_while_guests_run_and_keeps_those_that_do_not() -> Result<()> {
    const UNIT: &str = "/etc/systemd/system/kdump-tools-dump.service.d/vmrestore.conf";
    let lab = Lab::prepare_with_installed(&["kdump-tools", "makedumpfile", "sysvinit-utils"])?;
    let extra = Extra {
        tools: vec![vmrestore()],
        alive: Some(Box::new(|machine| {
            let configure = "cp /usr/share/kdump-tools/kdump-tools.conf /etc/default/kdump-tools && \
                printf '%s\\n' KDUMP_KERNEL=/boot/vmlinuz KDUMP_INITRD=/dump/host.initrd \
                'MAKEDUMP_ARGS=\"-c -d 31\"' \
                'KDUMP_CMDLINE_APPEND=\"reset_devices nr_cpus=1 irqpoll loglevel=4\"' \
                >> /etc/default/kdump-tools && sed -i s/^USE_KDUMP=.*/USE_KDUMP=1/ /etc/default/kdump-tools";
            // The root of the lab's host has modules of its own making, in a directory of its own.
            let prepare = "vmrestore prepare --install --modules /lib/modules/lab --first g1; \
                           c=$?; [ $c = 0 ] || [ $c = 8 ]";
            let load = "sh /usr/sbin/kdump-config unload; sh /usr/sbin/kdump-config load && \
                        [ $(cat /sys/kernel/kexec_crash_loaded) = 1 ]";
            well(machine, &[WRITABLE, configure, prepare, load, "sync"]).map(drop)
        })),
        ..Extra::default()
    };
    let guests = vec![
        flavours::microvm().numbered(1),
        flavours::named("pc")
            .context("no such flavour")?
            .numbered(2),
    ];
    let mut host = lab.in_capture_kernel(&scenario(guests, 2304, 640)?, extra, &lab.new_run())?;
    host.follow_all()?;
    // The second guest's disk is not to be had now: it is refused, and nothing else comes of it.
    for command in [WRITABLE, "mv /data/g2.disk /data/g2.away"] {
        host.run(command, MINUTE)?.success(command)?;
    }
    // What systemd would start, by the drop-in.
    let hook = format!("$(sed -n 's/^ExecStart=\\(.\\)/\\1/p' {UNIT})");
    let start = format!("setsid {hook} > /data/hook.log 2>&1 < /dev/null &");
    host.run(&start, MINUTE)?.success(&start)?;
    host.wait_new_lines("g1", LINES, 8 * MINUTE)?;
    let said = wait_for(&mut host, "the dump is saved", "/data/hook.log", 8 * MINUTE)?;
    println!("{said}");
    for word in [
        "g1 goes on in place",
        "g2 does not go on",
        "MAKEDUMP_ARGS=\"-c -d 17\"",
        "saved vmcore",
    ] {
        ensure!(said.contains(word), "no {word:?} in\n{said}");
    }
    // The dump has the guest that did not go on, whole, and of the other nothing that could mislead.
    let list = "vmrestore --json list /var/crash/*/dump.*";
    let listed: Value = serde_json::from_str(&host.run(list, 3 * MINUTE)?.success(list)?.stdout)?;
    let state = |name: &str| {
        let guests = listed["guests"].as_array().into_iter().flatten();
        guests
            .filter(|g| g["name"] == name)
            .map(|g| g["state"].clone())
            .next()
    };
    ensure!(state("g2").is_some_and(|s| s == "whole"), "{listed:#}");
    ensure!(state("g1").is_some_and(|s| s == "partial"), "{listed:#}");
    // Nothing of the configuration was changed for that.
    let unchanged = "grep -q 'MAKEDUMP_ARGS=\"-c -d 31\"' /etc/default/kdump-tools";
    host.run(unchanged, MINUTE)?.success(unchanged)?;

    // It waits while a guest runs, and then resets the machine.
    host.wait_new_lines("g1", 2 * LINES, 3 * MINUTE)?;
    end_guest(&mut host, "g1")?;
    let aftermath = host.ended(3 * MINUTE)?;
    let verdict = aftermath.verdict("g1", LINES);
    println!("g1: {verdict}");
    ensure!(verdict.is_good(), "{verdict}");
    Ok(())
}

//! Guests that move away from the host that died: restored there by vmrestore, then moved to a second
//! host by their VMM's own live migration, and never heard to miss a line.
//!
//! Two emulated hosts with a wire between their network cards (docs/lab.md): `scripts/test --all` runs
//! these with `--include-ignored`.

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use std::path::Path;
use std::time::{Duration, Instant};
use vmrestore_lab::crash::{Extra, Record};
use vmrestore_lab::guest::Guest;
use vmrestore_lab::neighbour::{self, Neighbour};
use vmrestore_lab::scenario::MAIN_DUMP;
use vmrestore_lab::{
    Aftermath, CachedDump, Lab, Luggage, Rebooted, Scenario, flavours, network_card,
};

const MINUTE: Duration = Duration::from_secs(60);
/// Lines that a guest must print on each host.
const LINES: usize = 20;
/// Where the second host's VMM listens for what comes.
const PORT: u32 = 4444;
/// Says the PID of vmrestore's pager, if there is one.
const PAGER: &str = "grep -lx vmrestore-pager /proc/[0-9]*/comm 2>/dev/null | cut -d/ -f3";
const IN_PLACE: &str = "vmrestore --json guests /proc/vmcore --in-place";

fn vmrestore() -> (String, std::path::PathBuf) {
    let binary = Path::new(env!("CARGO_BIN_EXE_vmrestore"));
    ("vmrestore".into(), binary.to_owned())
}

/// One QMP command to the VMM of `guest`; what it returns.
fn qmp(host: &mut Rebooted, guest: &str, command: &str, arguments: Value) -> Result<Value> {
    let message = json!({"execute": command, "arguments": arguments}).to_string();
    let output = host.qmp(guest, &[&message])?.success(command)?;
    let answer: Value = serde_json::from_str(&output.stdout)?;
    Ok(answer["return"].clone())
}

/// Asks until the answer of `command` suits.
fn ask_until(
    host: &mut Rebooted,
    guest: &str,
    command: &str,
    suits: impl Fn(&Value) -> bool,
) -> Result<Value> {
    let begin = Instant::now();
    loop {
        let answer = qmp(host, guest, command, json!({}))?;
        if suits(&answer) {
            return Ok(answer);
        }
        ensure!(answer["status"] != "failed", "{command}: {answer:#}");
        if begin.elapsed() > 5 * MINUTE {
            bail!("{command}: still {answer:#}");
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// Lets a guest's migration begin, with these capabilities; a disk is copied beforehand.
fn begin_to_move(
    host: &mut Rebooted,
    next: &mut Neighbour,
    guest: &Guest,
    capabilities: &[&str],
) -> Result<()> {
    let name = &guest.name;
    set(&mut next.host, name, capabilities)?;
    set(host, name, capabilities)?;
    let incoming = json!({"uri": format!("tcp:0:{PORT}")});
    qmp(&mut next.host, name, "migrate-incoming", incoming)?;
    if guest.disk_mib > 0 {
        let address = json!({"type": "inet", "data": {"host": "0.0.0.0", "port": "10809"}});
        let address = json!({"addr": address});
        qmp(&mut next.host, name, "nbd-server-start", address)?;
        let export = json!({"type": "nbd", "id": "disk0", "node-name": node(&mut next.host, name)?,
                            "name": "disk0", "writable": true});
        qmp(&mut next.host, name, "block-export-add", export)?;
        let target = format!("nbd://{}:10809/disk0", neighbour::ADDRESS);
        let mirror = json!({"job-id": "move", "device": "disk0", "target": target, "format": "raw",
                            "sync": "full", "mode": "existing"});
        qmp(host, name, "drive-mirror", mirror)?;
        ask_until(host, name, "query-block-jobs", |jobs| {
            jobs[0]["ready"] == true
        })?;
        // Not before both disks are the same does the guest run there.
        set(host, name, &["pause-before-switchover"])?;
    }
    let uri = format!("tcp:{}:{PORT}", neighbour::ADDRESS);
    qmp(host, name, "migrate", json!({"uri": uri}))?;
    Ok(())
}

/// Capabilities that both ends of a migration must agree on.
fn set(host: &mut Rebooted, guest: &str, capabilities: &[&str]) -> Result<()> {
    let on = |name: &&str| json!({"capability": name, "state": true});
    let list: Vec<Value> = capabilities.iter().map(on).collect();
    let list = json!({"capabilities": list});
    qmp(host, guest, "migrate-set-capabilities", list).map(drop)
}

/// The name of the block node of the guest's disk.
fn node(host: &mut Rebooted, guest: &str) -> Result<Value> {
    let blocks = qmp(host, guest, "query-block", json!({}))?;
    let blocks = blocks.as_array().into_iter().flatten();
    let disk = blocks.clone().find(|block| block["device"] == "disk0");
    let disk = disk.context("no disk0")?;
    Ok(disk["inserted"]["node-name"].clone())
}

/// Waits until the guest has moved; its VMM here ends.
fn moved(host: &mut Rebooted, next: &mut Neighbour, guest: &Guest) -> Result<()> {
    let name = &guest.name;
    if guest.disk_mib > 0 {
        ask_until(host, name, "query-migrate", |m| {
            m["status"] == "pre-switchover"
        })?;
        qmp(host, name, "block-job-cancel", json!({"device": "move"}))?;
        ask_until(host, name, "query-block-jobs", |jobs| *jobs == json!([]))?;
        qmp(&mut next.host, name, "nbd-server-stop", json!({}))?;
        let go_on = json!({"state": "pre-switchover"});
        qmp(host, name, "migrate-continue", go_on)?;
    }
    let done = ask_until(host, name, "query-migrate", |m| m["status"] == "completed")?;
    let status = qmp(host, name, "query-status", json!({}))?;
    ensure!(status["status"] == "postmigrate", "{status:#}");
    println!(
        "{name}: moved in {} ms, of which it stood for {} ms; {} KiB sent, {} KiB available here then",
        done["total-time"],
        done["downtime"],
        done["ram"]["transferred"].as_u64().unwrap_or(0) >> 10,
        available(host)?
    );
    host.qmp(name, &["quit"])?.success("quit")?;
    ask_until(&mut next.host, name, "query-status", |s| {
        s["status"] == "running"
    })?;
    Ok(())
}

/// Memory that the host has to give, in KiB.
fn available(host: &mut Rebooted) -> Result<u64> {
    let ask = "grep MemAvailable /proc/meminfo | tr -s ' ' | cut -d' ' -f2";
    let said = host.run(ask, MINUTE)?.success(ask)?.stdout;
    said.trim().parse().context(said)
}

/// Every guest of which the report says anything runs.
fn running(host: &mut Rebooted, command: &str) -> Result<()> {
    let output = host.run(command, 8 * MINUTE)?;
    let said = format!("{}\n{}", output.stdout, output.stderr);
    ensure!(
        matches!(output.code, 0 | 8),
        "exit code {}: {said}",
        output.code
    );
    let report: Value = serde_json::from_str(&output.stdout)?;
    let results = report["results"].as_array().cloned().unwrap_or_default();
    ensure!(!results.is_empty(), "{said}");
    for result in results {
        ensure!(result["verdict"] == "running", "{result:#}");
    }
    Ok(())
}

/// Host 1 panics, its guest goes on in the capture kernel, moves to host 2, and host 1 is reset.
fn moves_away(guest: Guest, capabilities: &[&str]) -> Result<()> {
    let lab = Lab::prepare()?;
    let name = guest.name.clone();
    let mut next = Neighbour::start(&lab, std::slice::from_ref(&guest))?;
    let mut scenario = Scenario {
        name: "migrate".into(),
        guests: vec![guest.clone()],
        ..Scenario::named("in-place").context("no such scenario")?
    };
    scenario.hardware.network = Some(next.wire().to_owned());
    let extra = Extra {
        tools: vec![vmrestore()],
        luggage: network_card::modules(&lab)?,
        ..Extra::default()
    };
    let run = lab.new_run();
    let mut host = lab.in_capture_kernel(&scenario, extra, &run)?;
    let (died, up) = host.died.context("it has not died")?;
    host.follow_all()?;
    let network = network_card::up("/dump", neighbour::HOST);
    host.run(&network, MINUTE)?.success(&network)?;
    running(&mut host, IN_PLACE)?;
    host.wait_new_lines(&name, LINES, 3 * MINUTE)?;
    let silent = host.silence(&name).context("not followed")?;

    println!(
        "{name}: {} KiB available here before",
        available(&mut host)?
    );
    let asked = Instant::now();
    begin_to_move(&mut host, &mut next, &guest, capabilities)?;
    moved(&mut host, &mut next, &guest)?;
    next.host.wait_new_lines(&name, 1, 3 * MINUTE)?;
    let there = next.host.machine.agent.when_longer(&name, 0);
    let there = there.context("nothing came")?;
    println!(
        "{name}, from the panic: capture kernel up {:.1} s, its next line {:.1} s, asked to move \
         {:.1} s, its first line on the other host {:.1} s",
        up.as_secs_f64(),
        silent.as_secs_f64(),
        asked.duration_since(died).as_secs_f64(),
        there.duration_since(died).as_secs_f64()
    );

    // A dump of the same crash, from which the guest could come back as well as from the memory.
    let save = "makedumpfile -l -d 17 /proc/vmcore /dump/late.dump";
    host.run(save, 8 * MINUTE)?.success(save)?;
    let mut judged = host.finish()?;

    let again = CachedDump {
        dir: run.clone(),
        record: Record {
            scenario,
            images: lab.images.key.clone(),
            seconds_to_crash: 0.0,
            seconds_to_dump: 0.0,
            lost_attempts: vec![],
        },
    };
    let luggage = Luggage {
        tools: vec![vmrestore()],
        dumps: vec![],
        after: Some(run),
    };
    let mut host = lab.reboot(&again, &luggage)?;
    for command in [
        "vmrestore guests /dump/late.dump",
        "vmrestore guests /dump/late.dump --force",
    ] {
        let output = host.run(command, 3 * MINUTE)?;
        let said = format!("{}\n{}", output.stdout, output.stderr);
        ensure!(
            output.code == 5,
            "{command}: exit code {}\n{said}",
            output.code
        );
        ensure!(said.contains("was resumed in place"), "{command}: {said}");
    }
    drop(host);

    // Nothing of that was to the guest's harm.
    let far = newlines(&next.host.machine.agent.tail(&name));
    next.host.wait_new_lines(&name, far + LINES, 3 * MINUTE)?;
    whole(&mut judged, next, &name, 2 * LINES)
}

/// All that the guest ever printed, on both hosts, is one whole.
fn whole(judged: &mut Aftermath, next: Neighbour, name: &str, lines: usize) -> Result<()> {
    let there = next.finish()?;
    let here = newlines(judged.file(name));
    judged.goes_on(name, &there);
    let verdict = judged.verdict(name, lines);
    ensure!(verdict.is_good(), "{name}: {verdict}");
    println!(
        "{name}: {verdict}; {here} lines on the host that died, {} on the other",
        newlines(there.file(name))
    );
    Ok(())
}

fn newlines(bytes: &[u8]) -> usize {
    bytes.iter().filter(|byte| **byte == b'\n').count()
}

#[test]
#[ignore = "needs the lab: scripts/test"]
fn a_guest_moves_from_the_capture_kernel_to_another_host() -> Result<()> {
    moves_away(flavours::microvm().numbered(1), &[])
}

#[test]
#[ignore = "needs the lab: scripts/test"]
fn a_guest_with_a_disk_moves_from_the_capture_kernel_to_another_host() -> Result<()> {
    moves_away(flavours::pc().numbered(1), &[])
}

#[test]
#[ignore = "needs the lab: scripts/test"]
fn a_guest_on_a_memfd_moves_through_several_connections() -> Result<()> {
    let guest = flavours::named("memfd").context("no such flavour")?;
    moves_away(guest.numbered(1), &["multifd"])
}

/// Restored from a dump, it moves on before its memory has come: the pager is stopped when the migration
/// begins, so what had not come by then cannot be had, and a migration that took zeros for it would end.
#[test]
#[ignore = "needs the lab: scripts/test"]
fn a_guest_moves_while_its_memory_still_arrives() -> Result<()> {
    let lab = Lab::prepare()?;
    let mut dump = lab.dump(&Scenario::named("main").context("no such scenario")?)?;
    let guest = dump.record.scenario.guests[0].clone();
    let name = guest.name.clone();
    let mut next = Neighbour::start(&lab, std::slice::from_ref(&guest))?;
    dump.record.scenario.hardware.network = Some(next.wire().to_owned());
    let mut luggage = Luggage::vmrestore(&vmrestore().1);
    luggage.tools.extend(network_card::modules(&lab)?);
    let mut host = lab.reboot(&dump, &luggage)?;
    let network = network_card::up("/tools", neighbour::HOST);
    host.run(&network, MINUTE)?.success(&network)?;

    let restore = format!(
        "vmrestore guests /dump/{MAIN_DUMP} {name} --memory lazy </dev/null >/run/said 2>&1 & \
         for i in $(seq 600); do \
             [ -n \"$({PAGER})\" ] && qmp /run/{name}.qmp query-status && exit 0; sleep 0.2; \
         done; cat /run/said; exit 1"
    );
    host.run(&restore, 5 * MINUTE)?.success(&restore)?;
    begin_to_move(&mut host, &mut next, &guest, &[])?;
    let stop = format!("kill -STOP $({PAGER})");
    host.run(&stop, MINUTE)?
        .success("the pager has ended already")?;
    let sent = "cat /sys/class/net/eth0/statistics/tx_bytes";
    let mut before = String::new();
    let begin = Instant::now();
    loop {
        let now = host.run(sent, MINUTE)?.success(sent)?.stdout;
        // No more is sent: it waits for a page.
        if now == before {
            break;
        }
        ensure!(begin.elapsed() < 3 * MINUTE, "{now} bytes sent, and no end");
        before = now;
        std::thread::sleep(Duration::from_secs(3));
    }
    // Its VMM may wait for a page of its own, and not answer.
    let ask = format!("timeout 5 qmp /run/{name}.qmp query-migrate");
    let answer = host.run(&ask, MINUTE)?;
    println!("{name}, with the pager stopped: {}", answer.stdout.trim());
    ensure!(!answer.stdout.contains("completed"), "{}", answer.stdout);
    let on = format!("kill -CONT $({PAGER})");
    host.run(&on, MINUTE)?.success(&on)?;
    moved(&mut host, &mut next, &guest)?;
    let gone =
        format!("for i in $(seq 100); do [ -z \"$({PAGER})\" ] && exit 0; sleep 0.2; done; exit 1");
    host.run(&gone, MINUTE)?
        .success("the pager is still there")?;
    println!("{}", host.run("cat /run/said", MINUTE)?.stdout);
    let mut judged = host.finish()?;
    next.host.wait_new_lines(&name, LINES, 3 * MINUTE)?;
    whole(&mut judged, next, &name, LINES)
}

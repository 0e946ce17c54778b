//! The guests' networks, sockets and terminals after the death of their host.
//!
//! Needs the lab (docs/lab.md): `scripts/test` sets it up and runs these with
//! `--include-ignored`. The other side is `lab-net`, which shares no code with vmrestore; who
//! answers is told by the nonce that only the guest's memory has.

use anyhow::{Context, Result, ensure};
use std::path::Path;
use std::time::{Duration, Instant};
use vmrestore_lab::{CachedDump, Lab, Luggage, Rebooted, Scenario, flavours};

const MINUTE: Duration = Duration::from_secs(60);
const RESTORE: Duration = Duration::from_secs(300);
/// Lines that each guest must print after its restore.
const LINES: usize = 20;

/// A host with these flavours of guests, dead and rebooted.
fn reboot(name: &str, guests: &[&str]) -> Result<(Rebooted, CachedDump)> {
    let lab = Lab::prepare()?;
    let guests = (1..)
        .zip(guests)
        .map(|(n, flavour)| Some(flavours::named(flavour)?.numbered(n)))
        .collect::<Option<Vec<_>>>()
        .context("no such flavour")?;
    let scenario = Scenario {
        name: name.into(),
        guests,
        ..Scenario::named("process").context("the base")?
    };
    let scenario = Scenario {
        process: None,
        ..scenario
    };
    let dump = lab.dump(&scenario)?;
    let vmrestore = Path::new(env!("CARGO_BIN_EXE_vmrestore"));
    Ok((lab.reboot(&dump, &Luggage::vmrestore(vmrestore))?, dump))
}

fn run(host: &mut Rebooted, command: &str) -> Result<String> {
    Ok(host.run(command, MINUTE)?.success(command)?.stdout)
}

/// Everything is restored; nothing is said to be lost but what `bearable` names.
fn restore(host: &mut Rebooted, bearable: &[&str]) -> Result<String> {
    let output = host.run("vmrestore guests /dump/hostdump", RESTORE)?;
    ensure!(
        output.code == 0 || output.code == 8,
        "guests: exit code {}\n{}{}",
        output.code,
        output.stdout,
        output.stderr
    );
    for line in output.stdout.lines().filter(|l| l.starts_with("  lost:")) {
        // FPU registers of whoever was on a CPU are another matter.
        ensure!(
            line.contains("FPU") || bearable.iter().any(|b| line.contains(b)),
            "{line}"
        );
    }
    Ok(output.stdout)
}

/// The nonce that a guest drew at its boot, as it was seen before the crash.
fn nonce(dump: &CachedDump, guest: &str) -> Result<String> {
    let before = dump.before(guest);
    let text = String::from_utf8_lossy(&before);
    let (_, behind) = text.split_once("BOOT nonce=").context("no BOOT line")?;
    Ok(behind.chars().take(16).collect())
}

/// One answer of a guest: `field` of its line.
fn field<'a>(answer: &'a str, field: &str) -> Result<&'a str> {
    answer
        .split_ascii_whitespace()
        .find_map(|word| word.strip_prefix(field)?.strip_prefix('='))
        .with_context(|| format!("no {field} in {answer}"))
}

/// A field of two numbers.
fn two(answer: &str, name: &str) -> Result<(u64, u64)> {
    let (a, b) = field(answer, name)?.split_once(':').context("two")?;
    Ok((a.parse()?, b.parse()?))
}

/// Asks until an answer suits: what the guest's timers do takes its time on an emulated host.
fn ask_until(
    host: &mut Rebooted,
    at: &str,
    what: &str,
    suits: impl Fn(&str) -> Result<bool>,
) -> Result<String> {
    let begin = Instant::now();
    let mut last = String::new();
    while begin.elapsed() < 3 * MINUTE {
        let answers = host.run(&format!("lab-net ask {at} 3 500"), MINUTE)?.stdout;
        if let Some(answer) = answers.lines().rfind(|l| l.starts_with("N ")) {
            answer.clone_into(&mut last);
            if suits(answer)? {
                return Ok(last);
            }
        }
    }
    anyhow::bail!("{at}: {what} did not come: {last}")
}

fn judged_good(host: Rebooted) -> Result<()> {
    for (name, verdict) in host.finish()?.verdicts(LINES) {
        ensure!(verdict.is_good(), "{name}: {verdict}");
        println!("{name}: {verdict}");
    }
    Ok(())
}

fn go_on(host: &mut Rebooted, dump: &CachedDump) -> Result<()> {
    host.follow_all()?;
    for name in dump.names() {
        host.wait_new_lines(&name, LINES, 3 * MINUTE)?;
    }
    Ok(())
}

/// Guests on a bridge, in the middle of sending and receiving.
fn taps(name: &str, guests: &[(&str, &str)]) -> Result<()> {
    let names: Vec<&str> = guests.iter().map(|(flavour, _)| *flavour).collect();
    let (mut host, dump) = reboot(name, &names)?;
    let forward = "hexdump -v -e '16/1 \"%02x\" \"\\n\"' /sys/class/net/br0/brforward";
    restore(&mut host, &[])?;
    // Its bridge knows where each guest is, and each answers the first that asks.
    let heard = run(&mut host, forward)?;
    for (n, (flavour, address)) in (1..).zip(guests) {
        let last = address.rsplit('.').next().unwrap_or_default();
        ensure!(
            heard.contains(&format!("5254000000{last}")),
            "{flavour}: {heard}"
        );
        let answers = run(&mut host, &format!("lab-net ask {address}:7 5 1000"))?;
        let first = answers.lines().next().unwrap_or_default();
        let wanted = nonce(&dump, &format!("g{n}"))?;
        ensure!(field(first, "nonce")? == wanted, "{flavour}: {answers}");
        ensure!(field(first, "q")? == "1", "{flavour}: {answers}");
        println!("{flavour}: the first answer: {first}");
        let link = run(&mut host, &format!("ip link show tap-g{n}"))?;
        ensure!(link.contains("master br0"), "{flavour}: {link}");
    }
    for (flavour, address) in guests {
        // Its connection to a process of the dead host has ended, a new one stands, and what
        // it sends goes out.
        let at = format!("{address}:7");
        let first = ask_until(&mut host, &at, "the end of its connections", |answer| {
            Ok(two(answer, "peer")?.1 > 0 && two(answer, "tcp")? == (1, 1))
        })?;
        let (peer, flood): (u64, u64) = (two(&first, "peer")?.0, field(&first, "flood")?.parse()?);
        let then = ask_until(&mut host, &at, "its sending", |answer| {
            let sent: u64 = field(answer, "flood")?.parse()?;
            Ok(two(answer, "peer")?.0 > peer && sent > flood + 100)
        })?;
        println!("{flavour}: {then}");
    }
    go_on(&mut host, &dump)?;
    judged_good(host)
}

#[test]
#[ignore = "needs the lab: scripts/test"]
fn guests_on_taps_answer_at_once() -> Result<()> {
    taps(
        "net-taps",
        &[("tap", "10.9.0.11"), ("vhost-net", "10.9.0.12")],
    )
}

#[test]
#[ignore = "needs the lab: scripts/test"]
fn guests_with_several_queues_answer_at_once() -> Result<()> {
    taps(
        "net-queues",
        &[("tap-queues", "10.9.0.13"), ("vhost-queues", "10.9.0.14")],
    )
}

#[test]
#[ignore = "needs the lab: scripts/test"]
fn a_guest_is_in_its_own_vlan_again_and_no_other() -> Result<()> {
    let (mut host, dump) = reboot("net-vlan", &["tap-vlan", "tap-microvm"])?;
    restore(&mut host, &[])?;
    // The host is in VLAN 30 of this bridge, and hears nothing of VLAN 20.
    let ask = "lab-net ask 10.9.2.16:7 5 500";
    let answer = host.run(ask, MINUTE)?;
    ensure!(answer.code == 1, "it is in VLAN 30 too: {}", answer.stdout);
    // Now it is in VLAN 20; a port that was in 30 would follow, and the guest's was not.
    run(
        &mut host,
        "cd /sys/class/net/br1/bridge; echo 0 > vlan_filtering; echo 20 > default_pvid; \
         echo 1 > vlan_filtering; [ $(cat default_pvid vlan_filtering | tr -d '\\n') = 201 ]",
    )?;
    let answers = run(&mut host, ask)?;
    ensure!(answers.contains(&nonce(&dump, "g1")?), "{answers}");
    // A microvm beside it, on another bridge.
    let answers = run(&mut host, "lab-net ask 10.9.0.15:7 5 1000")?;
    let first = answers.lines().next().unwrap_or_default();
    ensure!(field(first, "nonce")? == nonce(&dump, "g2")?, "{answers}");
    ensure!(field(first, "q")? == "1", "{answers}");
    go_on(&mut host, &dump)?;
    judged_good(host)
}

#[test]
#[ignore = "needs the lab: scripts/test"]
fn peers_of_a_vmm_have_gone_and_new_ones_are_welcome() -> Result<()> {
    let (mut host, dump) = reboot("net-sockets", &["user-net", "sockets"])?;
    restore(
        &mut host,
        &[
            "connection",
            "received and unread",
            "socket",
            "log of dirty pages",
        ],
    )?;

    // User-mode network: the VMM's own sockets to other processes have ended, its listeners
    // listen, and the guest goes on through new ones.
    let at = "127.0.0.1:7107";
    let first = ask_until(&mut host, at, "an answer", |_| Ok(true))?;
    ensure!(field(&first, "nonce")? == nonce(&dump, "g1")?, "{first}");
    let peer = two(&first, "peer")?.0;
    let then = ask_until(&mut host, at, "a new connection", |answer| {
        let now = two(answer, "peer")?;
        Ok(now.1 > 0 && now.0 > peer)
    })?;
    println!("user-net: {then}");
    let stream = "timeout 5 lab-net hold 127.0.0.1:7107 | head -n 3";
    let stream = run(&mut host, stream)?;
    ensure!(stream.contains(&nonce(&dump, "g1")?), "{stream}");

    // Clients were attached to all of these, one of them in the middle of a command.
    for command in ["query-status", "query-balloon", "query-chardev"] {
        let answer = host.qmp("g2", &[command])?.success(command)?;
        println!("{}", answer.stdout.trim());
    }
    for (at, greeting) in [
        ("127.0.0.1:7201", "{\"QMP\""),
        ("127.0.0.1:5901", "RFB 003.008"),
        ("/run/g2.vnc", "RFB 003.008"),
        ("/run/g2.monitor", "QEMU 7.2"),
    ] {
        let heard = run(&mut host, &format!("timeout 5 lab-net hold {at} || true"))?;
        ensure!(heard.contains(greeting), "{at}: {heard}");
    }
    let pty = host.qmp("g2", &["query-chardev"])?.stdout;
    ensure!(pty.contains("pty:/dev/pts/0"), "{pty}");
    let nonce = nonce(&dump, "g2")?;
    for (n, at) in ["/run/g2.ttyS1", "/dev/pts/0", "[::1]:7203", "/run/g2.port"]
        .iter()
        .enumerate()
    {
        let line = format!("lab-net line '{at}' asked{n}");
        let answer = run(&mut host, &line)?;
        ensure!(answer.contains(&nonce), "{at}: {answer}");
    }
    // Random numbers come.
    let at = "127.0.0.1:7108";
    let first = ask_until(&mut host, at, "an answer", |_| Ok(true))?;
    let reads: u64 = field(&first, "rng")?.parse()?;
    ask_until(&mut host, at, "random numbers", |answer| {
        Ok(field(answer, "rng")?.parse::<u64>()? > reads)
    })?;
    go_on(&mut host, &dump)?;
    judged_good(host)
}

//! A VMM that is not QEMU, in a host that really dies: the stand-in for
//! Firecracker and Cloud Hypervisor (guest-images/src/bin/stand-in) with its
//! two descriptors and mappings of each vCPU, its eighty eventfds, its timers,
//! watches, socketpairs and filters. The lab judges its guest, and what it
//! says of its own holdings.
//!
//! Needs the lab (docs/lab.md): `scripts/test` runs these with
//! `--include-ignored`.

use anyhow::{Context, Result, ensure};
use std::path::Path;
use std::time::{Duration, Instant};
use vmrestore_lab::judge::holdings;
use vmrestore_lab::{Lab, Luggage, Rebooted, Scenario};

const MINUTE: Duration = Duration::from_secs(60);
const RESTORE: Duration = Duration::from_secs(300);
/// Lines that the guest must print after its restore, and its VMM.
const LINES: usize = 20;
const VMM_LINES: usize = 150;

fn reboot(scenario: &str) -> Result<Rebooted> {
    let lab = Lab::prepare()?;
    let scenario = Scenario::named(scenario).context("no such scenario")?;
    let dump = lab.dump(&scenario)?;
    let vmrestore = Path::new(env!("CARGO_BIN_EXE_vmrestore"));
    lab.reboot(&dump, &Luggage::vmrestore(vmrestore))
}

fn said_of_holdings(host: &mut Rebooted) -> Result<Vec<u8>> {
    let all = host.run("cat /data/g1.holdings", MINUTE)?;
    Ok(all.success("cat")?.stdout.into_bytes())
}

fn whole_lines(bytes: &[u8]) -> usize {
    bytes.iter().filter(|byte| **byte == b'\n').count()
}

/// Restores the guest, lets both run on, judges both.
fn goes_on(scenario: &str) -> Result<()> {
    let mut host = reboot(scenario)?;
    let output = host.run("vmrestore guests /dump/hostdump", RESTORE)?;
    ensure!(
        output.code == 0 || output.code == 8,
        "exit code {}\n{}{}",
        output.code,
        output.stdout,
        output.stderr
    );
    // What the dead host had not written yet is there by now, and was before
    // the VMM went on: the crash is where the VMM was asked for nothing yet.
    let before = said_of_holdings(&mut host)?;
    let cut = before.iter().rposition(|byte| *byte == b'\n');
    let before = &before[..cut.map_or(0, |at| at + 1)];
    host.follow_all()?;
    host.wait_new_lines("g1", LINES, 3 * MINUTE)?;
    let begin = Instant::now();
    while whole_lines(&said_of_holdings(&mut host)?) < whole_lines(before) + VMM_LINES {
        ensure!(begin.elapsed() < 4 * MINUTE, "the VMM stands still");
        std::thread::sleep(Duration::from_secs(2));
    }
    // Its API answers, behind its two filters; each thread has its own.
    let answer = host.run("stand-in ask /run/g1.api ping", MINUTE)?;
    let answer = answer.success("ping")?.stdout;
    ensure!(
        answer.starts_with("pong 1 guards=ok:"),
        "the API says {answer:?}"
    );
    let threads = "for t in /proc/$(pidof stand-in)/task/*; do \
                   echo $(cat $t/comm) $(grep -e NoNewPrivs -e Seccomp_filters $t/status); done";
    let threads = host.run(threads, MINUTE)?.success("threads")?.stdout;
    for (name, no_new_privs, filters) in [
        ("stand-in", 0, 0),
        ("noise", 0, 0),
        ("signals", 0, 0),
        ("holder", 1, 1),
        ("vcpu0", 1, 1),
        ("vcpu1", 1, 1),
        ("_disk0_q0", 1, 1),
        ("api", 1, 2),
    ] {
        let line = format!("{name} NoNewPrivs: {no_new_privs} Seccomp_filters: {filters}");
        ensure!(threads.contains(&line), "{line} expected in\n{threads}");
    }
    // Two descriptors and two mappings of each vCPU.
    let vcpus = host.run(
        "ls -l /proc/$(pidof stand-in)/fd | grep -c kvm-vcpu; \
         grep -c kvm-vcpu /proc/$(pidof stand-in)/maps",
        MINUTE,
    )?;
    ensure!(vcpus.stdout == "4\n4\n", "{}", vcpus.stdout);

    let verdict = holdings(before, &said_of_holdings(&mut host)?);
    println!("holdings: {verdict}");
    ensure!(verdict.is_good(), "holdings: {verdict}");
    for (name, verdict) in host.finish()?.verdicts(LINES) {
        ensure!(verdict.is_good(), "{name}: {verdict}");
        println!("{name}: {verdict}");
    }
    Ok(())
}

#[test]
#[ignore = "needs the lab: scripts/test"]
fn a_vmm_that_is_not_qemu_goes_on_with_all_that_it_holds() -> Result<()> {
    goes_on("stand-in")
}

#[test]
#[ignore = "needs the lab: scripts/test"]
fn its_memory_may_be_a_memfd() -> Result<()> {
    goes_on("stand-in-memfd")
}

/// Refused before anything starts, with how many requests were in flight.
#[test]
#[ignore = "needs the lab: scripts/test"]
fn an_io_uring_with_requests_in_flight_is_refused() -> Result<()> {
    let mut host = reboot("stand-in-in-flight")?;
    let state = "md5sum /data/g1.*; ps | grep -c '[s]tand-in'; ls /run";
    let before = host.run(state, MINUTE)?.stdout;
    for dry in ["--dry-run", ""] {
        let command = format!("vmrestore guests /dump/hostdump {dry}");
        let output = host.run(&command, RESTORE)?;
        let text = &output.stderr;
        ensure!(output.code == 5, "exit code {}\n{text}", output.code);
        for word in [
            "(io_uring_fops)",
            " requests in flight",
            "hint: ",
            "aio=threads",
        ] {
            ensure!(text.contains(word), "no {word:?} in\n{text}");
        }
    }
    let after = host.run(state, MINUTE)?.stdout;
    ensure!(before == after, "it left something:\n{before}\n{after}");
    Ok(())
}

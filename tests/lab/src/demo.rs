//! The main job before the reader's eyes: a host dies, and what ran on it goes on.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::reboot::Luggage;
use crate::scenario::{MAIN_DUMP, Scenario, unique_seed};
use crate::{CachedDump, Lab, Output, Rebooted, Verdict};

/// Lines that each must print after the restore.
const LINES: usize = 15;
/// Lines of each side by side.
const SHOWN: usize = 4;
const MINUTE: Duration = Duration::from_secs(60);

/// Crashes a host at a random moment, reboots it, restores everything with this
/// vmrestore, and shows the outputs from before and after.
///
/// # Errors
/// When a step fails, or something did not come back as it was.
pub fn run(vmrestore: &Path) -> Result<()> {
    step("Building the host, the guests and the program (once)");
    let lab = Lab::prepare()?;
    let mut scenario = Scenario::named("main").unwrap_or_else(|| unreachable!("main exists"));
    scenario.seed = unique_seed(0);

    step(
        "A KVM host starts: a microvm guest, a pc guest with 2 vCPUs and a disk, a program of 4 threads",
    );
    println!("They run until a random moment. Then: echo c > /proc/sysrq-trigger");
    let dump = lab.dump(&scenario)?;
    println!(
        "It ran for {:.0} s and died. kdump took {:.0} s. This is all that is left of it:\n",
        dump.record.seconds_to_crash, dump.record.seconds_to_dump
    );
    last_words(&dump);
    let result = bring_back(&lab, &dump, vmrestore);
    // Each demo has a crash of its own; nobody asks for this one again.
    std::fs::remove_dir_all(&dump.dir)?;
    result
}

fn bring_back(lab: &Lab, dump: &CachedDump, vmrestore: &Path) -> Result<()> {
    step("The host boots again, with its disks as the crash left them, and the dump");
    let mut host = lab.reboot(dump, &Luggage::vmrestore(vmrestore))?;
    show(&mut host, &format!("vmrestore list /dump/{MAIN_DUMP}"))?;
    show(&mut host, &format!("vmrestore check /dump/{MAIN_DUMP}"))?;

    step("They come back");
    let started = Instant::now();
    show(&mut host, &format!("vmrestore guests /dump/{MAIN_DUMP}"))?;
    show(
        &mut host,
        &format!("vmrestore process /dump/{MAIN_DUMP} pid:4911"),
    )?;
    println!(
        "({:.0} s, on an emulated CPU)",
        started.elapsed().as_secs_f64()
    );
    show(&mut host, "qmp /run/g1.qmp query-status")?;
    show(&mut host, "qmp /run/g2.qmp query-status")?;

    host.follow_all()?;
    for name in dump.names() {
        host.wait_new_lines(&name, LINES, 3 * MINUTE)?;
    }
    let verdicts = host.finish()?.verdicts(LINES);
    step("Before the crash, and after the restore");
    for (name, verdict) in &verdicts {
        side_by_side(name, verdict);
    }
    if verdicts.iter().any(|(_, verdict)| !verdict.is_good()) {
        bail!("not everything came back whole");
    }
    println!(
        "Everything went on where it was. Nonces that were nowhere but in memory are the same,"
    );
    println!("no number is missing or twice, every sum and every disk block is right.");
    Ok(())
}

fn step(what: &str) {
    println!("\n=== {what}");
}

/// Runs a command in the host as a user would see it.
fn show(host: &mut Rebooted, command: &str) -> Result<()> {
    println!("\n# {command}");
    let Output {
        code,
        stdout,
        stderr,
    } = host.run(command, 5 * MINUTE)?;
    // What it said while it worked, then what it found.
    print!("{stderr}{stdout}");
    // 8: restored, with losses that were named.
    if code != 0 && code != 8 {
        bail!("{command}: exit code {code}");
    }
    Ok(())
}

/// The panic on the dead host's console.
fn last_words(dump: &CachedDump) {
    let console = std::fs::read(dump.dir.join("console.log")).unwrap_or_default();
    let console = String::from_utf8_lossy(&console);
    let panic = [
        "sysrq: Trigger a crash",
        "Kernel panic",
        "Oops",
        "RIP:",
        "Call Trace",
    ];
    for line in console
        .lines()
        .filter(|l| panic.iter().any(|p| l.contains(p)))
        .take(6)
    {
        println!("    {}", line.trim_end());
    }
}

/// The last lines before the crash over the first ones after it: lines as long
/// as these do not fit beside each other.
fn side_by_side(name: &str, verdict: &Verdict) {
    println!("\n{name}");
    let before = verdict.lines_before.iter().rev().take(SHOWN).rev();
    for line in before {
        println!("  before | {}", line.trim_end());
    }
    println!("  -------+----- kernel panic, kdump, reboot, vmrestore -----");
    for line in verdict.lines_after.iter().take(SHOWN) {
        println!("  after  | {}", line.trim_end());
    }
    println!("  {verdict}");
}

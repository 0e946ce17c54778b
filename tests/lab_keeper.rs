//! FPU registers of guests and threads that were on a CPU: with the keeper, without it, and with what
//! a hypervisor said of the CPUs.
//!
//! Needs the lab (docs/lab.md): `scripts/test` sets it up and runs these with `--include-ignored`.
//! Guests and programs count in vector registers beside a general one, and say `stale` when the two
//! part: that is the evidence, not what vmrestore says of itself.

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use vmrestore_lab::crash::{Extra, REGISTERS};
use vmrestore_lab::scenario::{Death, MAIN_DUMP};
use vmrestore_lab::{CachedDump, Lab, Luggage, Output, Rebooted, Scenario};

const MINUTE: Duration = Duration::from_secs(60);
const RESTORE: Duration = Duration::from_secs(300);
const LINES: usize = 20;
const FPU: &str = "FPU";

fn vmrestore() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_vmrestore"))
}

/// `vmrestore --json show`, on this machine.
fn show(dump: &Path, selector: &str, options: &[&str]) -> Result<Value> {
    let output = Command::new(vmrestore())
        .args(["--json", "show"])
        .arg(dump)
        .arg(selector)
        .args(options)
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "show {selector}: {said}");
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// The levels of what the report says of something whose name begins so.
fn levels<'a>(report: &'a Value, what: &str) -> Vec<&'a str> {
    let lines = report["fidelity"].as_array().into_iter().flatten();
    lines
        .filter(|line| line["what"].as_str().is_some_and(|w| w.starts_with(what)))
        .filter_map(|line| line["level"].as_str())
        .collect()
}

/// A dump of the scenario in which the guest was in guest mode, counting: the vCPU's `rdi` and its
/// vector registers are the same number, if both are of one instant.
fn busy_dump(lab: &Lab, name: &str) -> Result<CachedDump> {
    for seed in 0..5 {
        let mut scenario = Scenario::named(name).context("no such scenario")?;
        scenario.seed = seed;
        let dump = lab.dump(&scenario)?;
        let vcpu = &show(&dump.path(), "g1", &[])?["vms"][0]["vcpus"][0];
        if vcpu["activity"]["at"] == "guest_mode" {
            return Ok(dump);
        }
        println!("{name}, seed {seed}: the vCPU was not in guest mode");
    }
    bail!("{name}: in five crashes the vCPU was never in guest mode")
}

/// Restores g1 in the rebooted host and lets it print; its verdict must be good.
fn restore(lab: &Lab, dump: &CachedDump, options: &str, code: i32) -> Result<String> {
    let mut host = lab.reboot(dump, &Luggage::vmrestore(vmrestore()))?;
    let output = host.run(
        &format!("vmrestore guests /dump/{MAIN_DUMP} {options}"),
        RESTORE,
    )?;
    expect_code(&output, code)?;
    host.follow_all()?;
    host.wait_new_lines("g1", LINES, 3 * MINUTE)?;
    let verdict = host.finish()?.verdict("g1", LINES);
    ensure!(verdict.is_good(), "{verdict}");
    println!("{}: exit {code}, {verdict}", dump.dir.display());
    Ok(verdict.word().to_owned())
}

fn expect_code(output: &Output, code: i32) -> Result<()> {
    ensure!(
        output.code == code,
        "exit code {} and not {code}\n{}{}",
        output.code,
        output.stdout,
        output.stderr
    );
    Ok(())
}

#[test]
#[ignore = "needs the lab: scripts/test"]
fn with_the_keeper_a_guest_on_a_cpu_is_exact() -> Result<()> {
    let lab = Lab::prepare()?;
    let dump = busy_dump(&lab, "keeper")?;
    let report = show(&dump.path(), "g1", &[])?;
    ensure!(levels(&report, FPU) == ["exact"], "{}", report["fidelity"]);
    let word = restore(&lab, &dump, "", 0)?;
    ensure!(word != "stale", "the guest has lost vector registers");
    Ok(())
}

#[test]
#[ignore = "needs the lab: scripts/test"]
fn without_the_keeper_the_loss_is_said() -> Result<()> {
    let lab = Lab::prepare()?;
    let dump = busy_dump(&lab, "no-keeper")?;
    let report = show(&dump.path(), "g1", &[])?;
    ensure!(levels(&report, FPU) == ["lost"], "{}", report["fidelity"]);
    // Whether the guest notices depends on what it was doing: it is told in either case.
    restore(&lab, &dump, "", 8)?;
    Ok(())
}

#[test]
#[ignore = "needs the lab: scripts/test"]
fn a_guest_on_a_cpu_of_a_paused_host_comes_back_from_the_dumps_notes() -> Result<()> {
    let lab = Lab::prepare()?;
    let dump = busy_dump(&lab, "paused-busy")?;
    let report = show(&dump.path(), "g1", &[])?;
    ensure!(levels(&report, "registers") == ["exact"], "{report}");
    ensure!(levels(&report, FPU) == ["lost"], "{}", report["fidelity"]);
    restore(&lab, &dump, "", 8)?;

    let registers = dump.file(REGISTERS);
    let text = registers.display().to_string();
    let report = show(&dump.path(), "g1", &["--cpu-state", &text])?;
    ensure!(levels(&report, FPU) == ["exact"], "{}", report["fidelity"]);
    let options = format!("--cpu-state /dump/{REGISTERS}");
    let word = restore(&lab, &dump, &options, 0)?;
    ensure!(word != "stale", "the guest has lost vector registers");
    Ok(())
}

#[test]
#[ignore = "needs the lab: scripts/test"]
fn a_text_that_is_not_of_this_host_is_refused() -> Result<()> {
    let lab = Lab::prepare()?;
    let dump = busy_dump(&lab, "paused-busy")?;
    let text = std::fs::read_to_string(dump.file(REGISTERS))?;
    // CPUs in the other order; a text cut short.
    let swapped = text
        .replace("CPU#0", "CPU#x")
        .replace("CPU#1", "CPU#0")
        .replace("CPU#x", "CPU#1");
    let cut = text
        .split("YMM03")
        .next()
        .context("no vector registers in the text")?;
    for (text, why) in [(swapped.as_str(), "per-CPU area"), (cut, "YMM03")] {
        let file = tempfile(text)?;
        let output = Command::new(vmrestore())
            .arg("list")
            .arg(dump.path())
            .arg("--cpu-state")
            .arg(&file)
            .output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        std::fs::remove_file(&file)?;
        ensure!(output.status.code() == Some(3), "{said}");
        ensure!(said.contains(why) && said.contains("\nhint: "), "{said}");
    }
    Ok(())
}

fn tempfile(text: &str) -> Result<PathBuf> {
    let path = std::env::temp_dir().join(format!("vmrestore-cpu-state-{}", std::process::id()));
    std::fs::write(&path, text)?;
    Ok(path)
}

/// PIDs of two programs that keep two CPUs busy in user mode.
const COUNTERS: [u32; 2] = [5001, 5101];

/// A host that an NMI kills while they count; both CPUs take the NMI, one of them panics.
fn counting_host(lab: &Lab, keeper: bool) -> Result<CachedDump> {
    let mut scenario = Scenario::named("process").context("no such scenario")?;
    scenario.name = format!("counting-{}", if keeper { "keeper" } else { "bare" });
    scenario.process = None;
    scenario.keeper = keeper;
    scenario.death = Death::Nmi;
    let mut extra = Extra::of(&lab.dir, &scenario)?;
    let program = lab.test_program("counting")?;
    extra.luggage.push(("counting".into(), program));
    extra.alive = Some(Box::new(|machine| {
        let agent = &mut machine.agent;
        agent
            .run("cp /dump/counting /data/ && sync", MINUTE)?
            .success("copy")?;
        for pid in COUNTERS {
            let start = format!(
                "echo {} > /proc/sys/kernel/ns_last_pid; \
                 setsid /data/counting </dev/null >/data/count.{pid} 2>&1 & echo $!",
                pid - 1
            );
            let got = agent.run(&start, MINUTE)?.success("start")?;
            ensure!(got.stdout.trim() == pid.to_string(), "{}", got.stdout);
        }
        let counted = format!(
            "for i in $(seq 60); do \
             [ $(cat /data/count.{} | wc -l) -gt 2 ] && [ $(cat /data/count.{} | wc -l) -gt 2 ] \
             && exit 0; sleep 1; done; exit 1",
            COUNTERS[0], COUNTERS[1]
        );
        agent.run(&counted, 2 * MINUTE)?.success("they count")?;
        // Their files outlive the crash: a new file is on the disk seconds later.
        agent.run("sync", MINUTE)?.success("sync")?;
        // The shell that has looked for it leaves its CPU to them.
        std::thread::sleep(Duration::from_secs(3));
        Ok(())
    }));
    lab.crash(scenario, extra)
}

/// Such a host in whose dump both programs were on a CPU, and the report says `level` of both. Something
/// else may have had a CPU for a moment: three crashes are tried.
fn both_on_cpus(lab: &Lab, keeper: bool, level: &str) -> Result<CachedDump> {
    for _ in 0..3 {
        let dump = counting_host(lab, keeper)?;
        let mut on_cpu = 0;
        for pid in COUNTERS {
            let report = show(&dump.path(), &format!("pid:{pid}"), &[])?;
            let said = levels(&report, FPU);
            ensure!(said.iter().all(|l| *l == level), "{}", report["fidelity"]);
            on_cpu += said.len();
        }
        if on_cpu == 2 {
            return Ok(dump);
        }
        println!("only {on_cpu} of two programs were on a CPU");
        std::fs::remove_dir_all(&dump.dir)?;
    }
    bail!("in three crashes the two programs were never both on a CPU")
}

/// Restores both and returns what each printed afterwards.
fn restore_counters(host: &mut Rebooted, code: i32) -> Result<Vec<String>> {
    let before = outputs(host)?;
    let output = host.run(
        &format!(
            "vmrestore process /dump/{MAIN_DUMP} pid:{} pid:{}",
            COUNTERS[0], COUNTERS[1]
        ),
        RESTORE,
    )?;
    expect_code(&output, code)?;
    for _ in 0..60 {
        let after = outputs(host)?;
        let new: Vec<String> = after
            .iter()
            .zip(&before)
            .map(|(after, before)| after.get(before.len()..).unwrap_or_default().to_owned())
            .collect();
        if new.iter().all(|text| text.lines().count() > 3) {
            return Ok(new);
        }
        std::thread::sleep(Duration::from_secs(1));
    }
    bail!("they do not go on")
}

fn outputs(host: &mut Rebooted) -> Result<Vec<String>> {
    COUNTERS
        .iter()
        .map(|pid| Ok(host.run(&format!("cat /data/count.{pid}"), MINUTE)?.stdout))
        .collect()
}

#[test]
#[ignore = "needs the lab: scripts/test"]
fn threads_on_a_cpu_and_the_panicking_ones_own_are_exact_with_the_keeper() -> Result<()> {
    let lab = Lab::prepare()?;
    for (keeper, level, code) in [(true, "exact", 0), (false, "lost", 8)] {
        let dump = both_on_cpus(&lab, keeper, level)?;
        let mut host = lab.reboot(&dump, &Luggage::vmrestore(vmrestore()))?;
        let new = restore_counters(&mut host, code)?;
        let stale = new.iter().filter(|text| text.contains("stale")).count();
        println!("keeper {keeper}: {stale} of 2 programs lost vector registers");
        if keeper {
            ensure!(stale == 0, "they have lost vector registers: {new:?}");
        } else {
            ensure!(stale > 0, "nobody noticed a loss: is it a test? {new:?}");
        }
        host.finish()?;
        std::fs::remove_dir_all(&dump.dir)?;
    }
    std::fs::remove_file(lab.dir.join(format!("counting-{}", std::process::id())))?;
    Ok(())
}

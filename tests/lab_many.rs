//! Several guests on one host: side by side, one that cannot come back beside
//! eleven that can, and memory of every kind.
//!
//! Needs the lab (docs/lab.md): `scripts/test` sets it up and runs these with
//! `--include-ignored`.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::path::Path;
use std::time::Duration;
use vmrestore_lab::guest::Guest;
use vmrestore_lab::{Lab, Luggage, Rebooted, Scenario};

const MINUTE: Duration = Duration::from_secs(60);
/// Lines that each guest must print after its restore.
const LINES: usize = 6;

fn reboot(scenario: &str) -> Result<Rebooted> {
    let lab = Lab::prepare()?;
    let scenario = Scenario::named(scenario).context("no such scenario")?;
    let dump = lab.dump(&scenario)?;
    lab.reboot(
        &dump,
        &Luggage::vmrestore(Path::new(env!("CARGO_BIN_EXE_vmrestore"))),
    )
}

/// Verdict of each guest, by its name, as the command says it.
fn verdicts(stdout: &str) -> Result<Vec<(String, String)>> {
    let answer: Value = serde_json::from_str(stdout)?;
    let results = answer["results"].as_array().context("no results")?;
    Ok(results
        .iter()
        .map(|result| {
            let text = |key: &str| result[key].as_str().unwrap_or_default().to_owned();
            (text("name"), text("verdict"))
        })
        .collect())
}

#[test]
#[ignore = "needs the lab: scripts/test"]
fn one_of_twelve_that_cannot_come_back_holds_nobody_up() -> Result<()> {
    const STRANGER: &str = "g7";
    let mut host = reboot("dozen")?;
    // Somebody has used the disk since.
    host.run(&format!("echo moved on >> /data/{STRANGER}.disk"), MINUTE)?
        .success("append")?;
    let restored = host.run("vmrestore --json guests /dump/hostdump", 10 * MINUTE)?;
    ensure!(
        restored.code == 7,
        "exit code {} and not 7\n{}{}",
        restored.code,
        restored.stdout,
        restored.stderr
    );
    let verdicts = verdicts(&restored.stdout)?;
    ensure!(verdicts.len() == 12, "{verdicts:?}");
    for (name, verdict) in &verdicts {
        let want = if name == STRANGER {
            "refused"
        } else {
            "running"
        };
        ensure!(verdict == want, "{name} is {verdict}");
    }
    // Nothing of it is left behind.
    let left = host.run(&format!("{}vmm", Guest::vmm_function(STRANGER)), MINUTE)?;
    ensure!(left.code != 0, "{STRANGER} runs: {}", left.stdout);
    host.follow_all()?;
    for (name, _) in verdicts.iter().filter(|(name, _)| name != STRANGER) {
        host.wait_new_lines(name, LINES, 4 * MINUTE)?;
    }
    for (name, verdict) in host.finish()?.verdicts(LINES) {
        if name != STRANGER {
            ensure!(verdict.is_good(), "{name}: {verdict}");
        }
    }
    Ok(())
}

#[test]
#[ignore = "needs the lab: scripts/test"]
fn memory_of_every_kind_comes_back_as_such() -> Result<()> {
    memory_of_every_kind("--memory eager")
}

#[test]
#[ignore = "needs the lab: scripts/test"]
fn memory_of_every_kind_arrives_as_such() -> Result<()> {
    memory_of_every_kind("--memory lazy")
}

fn memory_of_every_kind(how: &str) -> Result<()> {
    let mut host = reboot("memory")?;
    let command = format!("vmrestore --json guests /dump/hostdump {how}");
    let restored = host.run(&command, 10 * MINUTE)?;
    println!("{}", restored.stdout);
    ensure!(
        matches!(restored.code, 0 | 8),
        "exit code {}\n{}",
        restored.code,
        restored.stderr
    );
    let report: Value = serde_json::from_str(&restored.stdout)?;
    for result in report["results"].as_array().context("no results")? {
        let name = result["name"].as_str().unwrap_or_default();
        let memory = &result["memory"];
        let arrived = memory["arrived_bytes"].as_u64().unwrap_or(0);
        // The guest's memory is in huge pages of a memfd, or a file on tmpfs: that is there at once.
        let at_once = how.ends_with("eager") || ["g1", "g3"].contains(&name);
        ensure!(
            (arrived < 64 << 20) == at_once && memory["arrived_bytes"] == memory["lazy_bytes"],
            "{name}: {memory}"
        );
    }
    // KiB of the VMM's memory in huge pages.
    for (name, kind) in [("g1", "shared"), ("g2", "private")] {
        let sum = format!(
            "{}awk '/_Hugetlb:/ {{ sum += $2 }} END {{ print sum }}' $(vmm)/smaps",
            Guest::vmm_function(name)
        );
        let huge = host.run(&sum, MINUTE)?.success(&sum)?.stdout;
        let kib: u64 = huge.trim().parse()?;
        ensure!(
            kib >= 64 << 10,
            "{name} has {kib} KiB in huge pages ({kind})"
        );
    }
    host.follow_all()?;
    for name in ["g1", "g2", "g3", "g4"] {
        host.wait_new_lines(name, LINES, 4 * MINUTE)?;
    }
    for (name, verdict) in host.finish()?.verdicts(LINES) {
        ensure!(verdict.is_good(), "{name}: {verdict}");
    }
    Ok(())
}

/// UEFI, a page of 1 GiB, a hole below 4 GiB, eight vCPUs: each has a host to
/// itself, and none is in the campaign.
#[test]
#[ignore = "needs the lab: scripts/test"]
fn guests_that_need_a_host_of_their_own_come_back() -> Result<()> {
    for flavour in ["ovmf", "gib-pages", "5-gib", "8-cpus"] {
        alone(flavour).context(flavour)?;
    }
    Ok(())
}

fn alone(flavour: &str) -> Result<()> {
    let mut host = reboot(flavour)?;
    let restored = host.run("vmrestore guests /dump/hostdump", 10 * MINUTE)?;
    ensure!(
        matches!(restored.code, 0 | 8),
        "exit code {}\n{}",
        restored.code,
        restored.stderr
    );
    if flavour == "gib-pages" {
        let free = host
            .run(
                "cat /sys/kernel/mm/hugepages/hugepages-1048576kB/free_hugepages",
                MINUTE,
            )?
            .success("free_hugepages")?;
        ensure!(free.stdout.trim() == "0", "{} pages are free", free.stdout);
    }
    host.follow_all()?;
    host.wait_new_lines("g1", LINES, 6 * MINUTE)?;
    for (name, verdict) in host.finish()?.verdicts(LINES) {
        ensure!(verdict.is_good(), "{name}: {verdict}");
    }
    Ok(())
}

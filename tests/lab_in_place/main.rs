//! Guests resumed in place: the host panics, and in its capture kernel the guests go on in the memory
//! where they lie, with no dump and no copy.
//!
//! Needs the lab (docs/lab.md): `scripts/test` runs these with `--include-ignored`. The capture kernel
//! brings up the root of the host that died, as Debian's kdump-tools does; what the guests print there
//! is judged with all that they had printed before.

mod alone;
mod kinds;
mod order;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::path::Path;
use std::time::Duration;
use vmrestore_lab::crash::Extra;
use vmrestore_lab::{Lab, Output, Rebooted, Scenario};

const MINUTE: Duration = Duration::from_secs(60);
/// Lines that each guest must print after its restore.
const LINES: usize = 20;
const IN_PLACE: &str = "vmrestore --json guests /proc/vmcore --in-place";

/// The scenario's host in its capture kernel, with vmrestore.
fn capture(scenario: &str) -> Result<Rebooted> {
    capture_with(&Lab::prepare()?, scenario, Extra::default())
}

/// The same with more.
fn capture_with(lab: &Lab, scenario: &str, mut extra: Extra<'_>) -> Result<Rebooted> {
    let scenario = Scenario::named(scenario).context("no such scenario")?;
    let vmrestore = Path::new(env!("CARGO_BIN_EXE_vmrestore")).to_owned();
    extra.tools.push(("vmrestore".into(), vmrestore));
    lab.in_capture_kernel(&scenario, extra, &lab.new_run())
}

/// What became of each guest; the exit code must be one of these.
fn results(output: &Output, codes: &[i32]) -> Result<Vec<Value>> {
    ensure!(
        codes.contains(&output.code),
        "exit code {}: {}\n{}",
        output.code,
        output.stdout,
        output.stderr
    );
    let report: Value = serde_json::from_str(&output.stdout)?;
    Ok(report["results"].as_array().cloned().unwrap_or_default())
}

/// What became of the guests, all of which run, with or without losses that were named.
fn running(output: Output) -> Result<Vec<Value>> {
    let results = results(&output, &[0, 8])?;
    for result in &results {
        ensure!(result["verdict"] == "running", "{result:#}");
        let lines = result["fidelity"].as_array().into_iter().flatten();
        let in_place = |line: &&Value| line["what"] == "memory in place";
        let line = lines
            .clone()
            .find(in_place)
            .with_context(|| format!("{result:#}"))?;
        println!("{}: {}", result["name"], line["how"]);
    }
    Ok(results)
}

/// What a guest drew at its boot, as it was seen before the crash.
fn nonce(host: &Rebooted, guest: &str) -> Result<String> {
    let text = String::from_utf8_lossy(host.before(guest));
    let (_, behind) = text.split_once("BOOT nonce=").context("no BOOT line")?;
    Ok(behind.chars().take(16).collect())
}

/// All guests go on, and nothing of what they ever printed is missing, doubled or wrong.
fn judged_good(mut host: Rebooted) -> Result<()> {
    let names = host.names();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    for name in &names {
        host.wait_new_lines(name, LINES, 3 * MINUTE)?;
    }
    judged(host, &names)
}

/// The same of some of them.
fn judged(host: Rebooted, names: &[&str]) -> Result<()> {
    for (name, verdict) in host.finish()?.verdicts(LINES) {
        if names.contains(&name.as_str()) {
            ensure!(verdict.is_good(), "{name}: {verdict}");
            println!("{name}: {verdict}");
        }
    }
    Ok(())
}

#[test]
#[ignore = "needs the lab: scripts/test"]
fn four_guests_go_on_after_one_panic() -> Result<()> {
    let mut host = capture("in-place-four")?;
    host.follow_all()?;
    let results = running(host.run(IN_PLACE, 8 * MINUTE)?)?;
    ensure!(results.len() == 4, "{results:#?}");
    // Opened past the page cache, which memory in place cannot be used for.
    let direct = |result: &Value| {
        let lines = result["fidelity"].as_array().into_iter().flatten();
        lines
            .filter(|line| line["what"] == "O_DIRECT of /data/g4.disk")
            .count()
    };
    let said: Vec<usize> = results.iter().map(direct).collect();
    ensure!(said.iter().sum::<usize>() >= 1 && said[3] >= 1, "{said:?}");
    for name in host.names() {
        host.wait_new_lines(&name, 1, 2 * MINUTE)?;
        let silent = host.silence(&name).context("not followed")?;
        println!("{name}: silent for {:.1} s", silent.as_secs_f64());
    }
    judged_good(host)
}

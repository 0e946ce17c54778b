//! One crash: its reboot, its restore, and what became of each guest.

use std::path::Path;
use std::time::Duration;

use anyhow::{Error, Result};
use serde_json::Value;

use super::plan::Planned;
use super::record::{Crash, Fate, Outcome};
use crate::guest::Guest;
use crate::phase::Phase;
use crate::reboot::{Luggage, Rebooted};
use crate::scenario::MAIN_DUMP;
use crate::{CachedDump, Lab, Output, Verdict};

/// Lines that each must print after the restore.
const LINES: usize = 8;
/// A guest in the middle of its firmware has to boot first.
const PATIENCE: Duration = Duration::from_secs(240);

/// What vmrestore said of one guest.
struct Said {
    vcpus: String,
    /// `running`, `paused`, `refused`, `failed`; empty: nothing.
    verdict: String,
    error: String,
    hint: String,
    /// It took `--rescue-blocks`.
    rescued: bool,
    losses: Vec<String>,
}

/// Reboots the host, restores all guests at once, lets them go on, and judges.
pub fn crash(
    lab: &Lab,
    dump: &CachedDump,
    planned: &[Planned],
    number: u64,
    vmrestore: &Path,
) -> Result<Crash> {
    let dir = lab.new_run();
    let mut host = lab.reboot_in(dump, &Luggage::vmrestore(vmrestore), &dir)?;
    let version = host.run("vmrestore --version", Duration::from_secs(30))?;
    let places: Vec<String> = planned
        .iter()
        .map(|p| vcpu_places(&mut host, p.guest.pid))
        .collect();
    let restored = host.run(
        &format!("vmrestore --json guests /dump/{MAIN_DUMP}"),
        Duration::from_secs(600),
    )?;
    std::fs::write(
        dir.join("restore.txt"),
        format!("{}\n{}", restored.stdout, restored.stderr),
    )?;
    let mut said: Vec<Said> = planned
        .iter()
        .zip(places)
        .map(|(planned, vcpus)| Said::of(&restored, planned.guest.pid, vcpus))
        .collect();
    rescue(&mut host, planned, &mut said)?;
    host.follow_all()?;
    let mut answers = Vec::new();
    for (planned, said) in planned.iter().zip(&said) {
        answers.push(go_on(&mut host, planned, said));
    }
    for (planned, answer) in planned.iter().zip(&mut answers) {
        if answer.is_ok() {
            *answer = press_power_button(&mut host, planned);
        }
    }
    for (planned, answer) in planned.iter().zip(&mut answers) {
        if answer.is_ok() {
            *answer = wait_for_end(&mut host, planned);
        }
    }
    let aftermath = host.finish()?;
    let mut fates = Vec::new();
    for ((planned, said), answer) in planned.iter().zip(&said).zip(answers) {
        let verdict = aftermath.verdict(&planned.guest.name, LINES);
        fates.push(fate(planned, said, answer, &verdict));
    }
    if fates.iter().all(|fate| fate.outcome != Outcome::Wrong) {
        std::fs::remove_dir_all(&dir)?;
    } else {
        eprintln!("campaign: the run's files are kept in {}", dir.display());
    }
    Ok(had(dump, number, version.stdout.trim(), fates))
}

/// A crash after which the host could not be asked: none of its guests is
/// judged, and it is not tried again.
pub fn unjudged(dump: &CachedDump, planned: &[Planned], number: u64, why: &Error) -> Crash {
    let fates = planned.iter().map(|planned| Fate {
        name: planned.guest.name.clone(),
        flavour: planned.guest.flavour.clone(),
        doing: planned.doing.into(),
        vcpus: "-".into(),
        outcome: Outcome::Unjudged,
        why: format!("{why:#}"),
        lines: (0, 0),
    });
    had(dump, number, "", fates.collect())
}

fn had(dump: &CachedDump, number: u64, version: &str, fates: Vec<Fate>) -> Crash {
    let scenario = &dump.record.scenario;
    Crash {
        number,
        host_cpus: scenario.hardware.cpus,
        death: format!("{:?}", scenario.death).to_lowercase(),
        keeper: scenario.keeper,
        version: version.to_owned(),
        lost_attempts: dump.record.lost_attempts.clone(),
        fates,
    }
}

impl Said {
    /// By the VMM's PID: not every VMM says its guest's name.
    fn of(restored: &Output, pid: u32, vcpus: String) -> Self {
        let answer: Value = serde_json::from_str(&restored.stdout).unwrap_or_default();
        let results = answer.get("results").and_then(Value::as_array);
        let result = results
            .into_iter()
            .flatten()
            .find(|result| result.get("pid").and_then(Value::as_u64) == Some(pid.into()));
        let text = |key: &str| {
            result
                .and_then(|result| result.get(key))
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned()
        };
        let lines = result
            .and_then(|result| result.get("fidelity"))
            .and_then(Value::as_array);
        let losses = lines
            .into_iter()
            .flatten()
            .filter(|line| line.get("level").and_then(Value::as_str) == Some("lost"))
            .filter_map(|line| Some(line.get("what")?.as_str()?.to_owned()))
            .collect();
        let mut error = text("error");
        if result.is_none() {
            error = restored
                .stderr
                .lines()
                .last()
                .unwrap_or("nothing was said")
                .into();
        }
        Self {
            vcpus,
            verdict: text("verdict"),
            error,
            hint: text("hint"),
            rescued: false,
            losses,
        }
    }

    fn is_back(&self) -> bool {
        matches!(self.verdict.as_str(), "running" | "paused")
    }
}

/// Brings those back that wait for one word of the operator's.
fn rescue(host: &mut Rebooted, planned: &[Planned], said: &mut [Said]) -> Result<()> {
    for (planned, said) in planned.iter().zip(said) {
        if said.verdict == "refused" && said.hint.contains("--rescue-blocks") {
            let pid = planned.guest.pid;
            let again =
                format!("vmrestore --json process /dump/{MAIN_DUMP} pid:{pid} --rescue-blocks");
            let restored = host.run(&again, Duration::from_secs(300))?;
            *said = Said {
                rescued: true,
                ..Said::of(&restored, pid, std::mem::take(&mut said.vcpus))
            };
        }
    }
    Ok(())
}

/// Sees that a restored guest's VMM answers, and that new lines come.
fn go_on(host: &mut Rebooted, planned: &Planned, said: &Said) -> Result<(), String> {
    if !said.is_back() {
        return Err(String::new());
    }
    let guest = &planned.guest;
    let name = &guest.name;
    if guest.other_vmm.is_empty() {
        let status = match host.qmp(name, &["query-status"]) {
            Ok(status) => status.stdout,
            Err(error) => return Err(format!("{error:#}")),
        };
        let wanted = match guest.phase {
            Phase::Paused => "\"paused\"",
            _ => "\"running\": true",
        };
        if !status.contains(wanted) {
            return Err(format!("QMP query-status says {}", status.trim()));
        }
        if guest.phase == Phase::Paused {
            host.qmp(name, &["cont"]).map_err(|e| format!("{e:#}"))?;
        }
    }
    // The judge says it if lines are missing.
    let _ = host.wait_new_lines(name, lines_of(planned), PATIENCE);
    Ok(())
}

/// A guest that boots has one line more to say.
fn lines_of(planned: &Planned) -> usize {
    LINES + usize::from(planned.guest.phase != Phase::Running)
}

fn press_power_button(host: &mut Rebooted, planned: &Planned) -> Result<(), String> {
    if !planned.guest.other_vmm.is_empty() {
        return Ok(());
    }
    match host.qmp(&planned.guest.name, &["system_powerdown"]) {
        Ok(output) if output.code == 0 => Ok(()),
        Ok(output) => Err(format!("QMP system_powerdown: {}", output.stdout.trim())),
        Err(error) => Err(format!("{error:#}")),
    }
}

/// The guest must say goodbye and its VMM end.
fn wait_for_end(host: &mut Rebooted, planned: &Planned) -> Result<(), String> {
    if !planned.guest.other_vmm.is_empty() {
        return Ok(());
    }
    let wait = format!(
        "{}for i in $(seq 240); do vmm >/dev/null || exit 0; sleep 0.5; done; exit 1",
        Guest::vmm_function(&planned.guest.name)
    );
    match host.run(&wait, Duration::from_secs(180)) {
        Ok(output) if output.code == 0 => Ok(()),
        Ok(_) => Err("the power button does nothing".into()),
        Err(error) => Err(format!("{error:#}")),
    }
}

fn fate(planned: &Planned, said: &Said, answer: Result<(), String>, verdict: &Verdict) -> Fate {
    let (outcome, why) = if said.is_back() {
        match (verdict.faults.first(), answer) {
            (Some(fault), _) => (Outcome::Wrong, fault.to_string()),
            (None, Err(why)) => (Outcome::Wrong, why),
            // Registers that the guest misses and nobody spoke of.
            (None, Ok(())) if !verdict.losses.is_empty() && said.losses.is_empty() => {
                (Outcome::Wrong, verdict.losses.join("; "))
            }
            (None, Ok(())) if said.rescued => (Outcome::Rescued, said.losses.join("; ")),
            (None, Ok(())) if !said.losses.is_empty() => (Outcome::Losses, said.losses.join("; ")),
            (None, Ok(())) => (Outcome::Exact, String::new()),
        }
    } else if said.verdict == "refused" {
        (Outcome::Refused, said.error.clone())
    } else {
        (Outcome::Failed, said.error.clone())
    };
    Fate {
        name: planned.guest.name.clone(),
        flavour: planned.guest.flavour.clone(),
        doing: planned.doing.into(),
        vcpus: said.vcpus.clone(),
        outcome,
        why,
        lines: (verdict.last_before, verdict.last_after),
    }
}

/// Where the guest's vCPUs were, from what `vmrestore show --json` says: for
/// each its activity, and what else tells how hard it was to bring back.
fn vcpu_places(host: &mut Rebooted, pid: u32) -> String {
    let show = format!("vmrestore --json show /dump/{MAIN_DUMP} pid:{pid}");
    let shown = host
        .run(&show, Duration::from_secs(120))
        .map_or_else(|_| String::new(), |output| output.stdout);
    let shown: Value = serde_json::from_str(&shown).unwrap_or_default();
    let vcpus = shown.pointer("/vms/0/vcpus").and_then(Value::as_array);
    let places: Vec<String> = vcpus
        .into_iter()
        .flatten()
        .map(|vcpu| {
            let at = vcpu.pointer("/activity/at").and_then(Value::as_str);
            let mut place = at.unwrap_or("?").replace('_', " ");
            if vcpu
                .get("exit_in_flight")
                .is_some_and(|exit| !exit.is_null())
            {
                place += " with an exit in flight";
            }
            place
        })
        .collect();
    match places.is_empty() {
        true => "-".into(),
        false => places.join(", "),
    }
}

//! Crashes at random moments in a row, each with its reboot and restore: does
//! everything come back, every time?

use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::Value;

use crate::crash::CachedDump;
use crate::reboot::{Luggage, Rebooted};
use crate::scenario::{Death, MAIN_DUMP, Scenario};
use crate::{Lab, Verdict};

/// Restores all guests and the program; vmrestore's exit codes 0 and 8 are
/// both success here, the second says that vector registers were lost.
pub const RESTORE: &str = "r=0; vmrestore guests /dump/hostdump || r=$?; \
                           [ $r = 0 ] || [ $r = 8 ] || exit $r; \
                           vmrestore process /dump/hostdump pid:4911 || r=$?; exit $r";

/// What a series does.
pub struct Options {
    /// The vmrestore binary.
    pub vmrestore: PathBuf,
    /// Crashes.
    pub runs: u64,
    /// How the host dies each time; `None`: by turns.
    pub death: Option<Death>,
    /// The shell command that restores everything.
    pub restore: String,
    /// Lines that each must print after the restore.
    pub lines: usize,
}

/// One guest, or the program, in one run.
struct Row {
    run: u64,
    death: String,
    name: String,
    /// Where each vCPU was at the panic, in vmrestore's words.
    vcpus: String,
    restore: String,
    qmp: String,
    verdict: String,
    last: (u64, u64),
    good: bool,
}

/// The table of a series.
#[derive(Default)]
pub struct Report {
    rows: Vec<Row>,
    /// Attempts that the lab lost before a crash.
    lost: Vec<String>,
    seconds: f64,
}

impl Report {
    /// True if everything came back in every run.
    #[must_use]
    pub fn all_good(&self) -> bool {
        !self.rows.is_empty() && self.rows.iter().all(|row| row.good)
    }
}

/// Runs the series. What fails after a crash is a row of the table, never
/// tried again.
pub fn run(lab: &Lab, scenario: &Scenario, options: &Options) -> Result<Report> {
    let started = Instant::now();
    let mut report = Report::default();
    for run in 1..=options.runs {
        // Two in one series are never the same crash, and a new series does
        // not find the last one's dumps: its moments are new.
        let mut scenario = scenario.clone();
        scenario.seed = unique_seed(run);
        scenario.death = options.death.unwrap_or(match run % 2 {
            1 => Death::Sysrq,
            _ => Death::Nmi,
        });
        let rows = match lab.dump(&scenario) {
            Err(error) => vec![Row::failed(run, "-", format!("no dump: {error:#}"))],
            Ok(dump) => {
                report.lost.extend(dump.record.lost_attempts.clone());
                let rows = one(lab, &dump, run, options);
                if rows.iter().all(|row| row.good) {
                    std::fs::remove_dir_all(&dump.dir)?;
                } else {
                    eprintln!("lab: run {run}: the dump is kept in {}", dump.dir.display());
                }
                rows
            }
        };
        for row in &rows {
            eprintln!(
                "lab: run {run} of {}: {}: {} (vCPUs: {})",
                options.runs, row.name, row.verdict, row.vcpus
            );
        }
        report.rows.extend(rows);
        report.seconds = started.elapsed().as_secs_f64();
    }
    Ok(report)
}

/// A seed that no crash had before.
pub(crate) fn unique_seed(run: u64) -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |now| now.as_secs()) * 1000 + run
}

/// One reboot, restore and judgement.
fn one(lab: &Lab, dump: &CachedDump, run: u64, options: &Options) -> Vec<Row> {
    let dir = lab.new_run();
    match restore_and_judge(lab, dump, run, options, &dir) {
        Ok(rows) => rows,
        Err(error) => dump
            .names()
            .iter()
            .map(|name| Row::failed(run, name, format!("{error:#} (kept in {})", dir.display())))
            .collect(),
    }
}

fn restore_and_judge(
    lab: &Lab,
    dump: &CachedDump,
    run: u64,
    options: &Options,
    dir: &std::path::Path,
) -> Result<Vec<Row>> {
    let mut host = lab.reboot_in(dump, &Luggage::vmrestore(&options.vmrestore), dir)?;
    let names = dump.names();
    let mut places = Vec::new();
    for name in &names {
        let show = format!("vmrestore --json show /dump/{MAIN_DUMP} {name}");
        places.push(match name.as_str() {
            "process" => "-".to_owned(),
            _ => vcpu_places(&host.run(&show, Duration::from_secs(120))?.stdout),
        });
    }
    let restored = host.run(&options.restore, Duration::from_secs(300))?;
    std::fs::write(
        dir.join("restore.txt"),
        format!("{}\n{}", restored.stdout, restored.stderr),
    )?;
    host.follow_all()?;
    for name in &names {
        // The judge says it if lines are missing.
        let _ = host.wait_new_lines(name, options.lines, Duration::from_secs(120));
    }
    let mut answers = Vec::new();
    for name in &names {
        answers.push(match name.as_str() {
            "process" => "-".to_owned(),
            guest => speak(&mut host, guest).unwrap_or_else(|error| format!("{error:#}")),
        });
    }
    let aftermath = host.finish()?;
    let rows: Vec<Row> = names
        .iter()
        .zip(places)
        .zip(answers)
        .map(|((name, vcpus), qmp)| {
            let verdict: Verdict = aftermath.verdict(name, options.lines);
            let restored_well = matches!(restored.code, 0 | 8);
            let answered = name == "process" || qmp == ANSWERED;
            Row {
                run,
                name: name.clone(),
                vcpus,
                death: format!("{:?}", dump.record.scenario.death).to_lowercase(),
                restore: format!("exit {}", restored.code),
                qmp,
                verdict: verdict.word(),
                last: (verdict.last_before, verdict.last_after),
                good: verdict.is_good() && restored_well && answered,
            }
        })
        .collect();
    if rows.iter().all(|row| row.good) {
        std::fs::remove_dir_all(dir)?;
    }
    Ok(rows)
}

/// What a restored VMM must do on its QMP socket.
const ANSWERED: &str = "running, then off";

/// Asks the guest's VMM whether it runs, then presses the guest's power button:
/// the guest must say goodbye and its VMM end.
fn speak(host: &mut Rebooted, guest: &str) -> Result<String> {
    let status = host.qmp(guest, &["query-status"])?;
    if !status.stdout.contains("\"running\": true") {
        return Ok(format!("{}{}", status.stdout.trim(), status.stderr.trim()));
    }
    // In brackets, so that the search does not find its own command line.
    let (first, rest) = guest.split_at(1);
    let ended = host.run(
        &format!(
            "qmp /run/{guest}.qmp system_powerdown >/dev/null; \
             for i in $(seq 120); do \
               pgrep -f -- '-name [{first}]{rest} ' >/dev/null || exit 0; sleep 0.5; \
             done; exit 1"
        ),
        Duration::from_secs(120),
    )?;
    Ok(match ended.code {
        0 => ANSWERED.into(),
        _ => "running, and the power button does nothing".into(),
    })
}

impl Row {
    fn failed(run: u64, name: &str, why: String) -> Self {
        Self {
            run,
            death: "-".into(),
            name: name.into(),
            vcpus: "-".into(),
            restore: "-".into(),
            qmp: "-".into(),
            verdict: why,
            last: (0, 0),
            good: false,
        }
    }
}

/// Where the guest's vCPUs were, from what `vmrestore show --json` said: for
/// each its activity, and what else tells how hard it was to bring back.
fn vcpu_places(shown: &str) -> String {
    let shown: Value = serde_json::from_str(shown).unwrap_or_default();
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

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "| run | death | guest | vCPUs at the panic | restore | QMP | last n before → at the end | verdict |"
        )?;
        writeln!(f, "|---|---|---|---|---|---|---|---|")?;
        for row in &self.rows {
            writeln!(
                f,
                "| {} | {} | {} | {} | {} | {} | {} → {} | {} |",
                row.run,
                row.death,
                row.name,
                row.vcpus,
                row.restore,
                row.qmp,
                row.last.0,
                row.last.1,
                row.verdict.replace('|', "/").replace('\n', " ")
            )?;
        }
        let good = self.rows.iter().filter(|row| row.good).count();
        write!(
            f,
            "\n{good} of {} good, in {:.0} s; attempts that the lab lost before a crash: {}",
            self.rows.len(),
            self.seconds,
            self.lost.len()
        )
    }
}

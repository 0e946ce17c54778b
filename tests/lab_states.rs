//! One crash carries a hundred small programs, each of which holds one kind of
//! state (tests/programs/states). After the reboot a command of its own brings
//! each back, and each is its own row of the report: what it looked at itself,
//! and what vmrestore said of it.
//!
//! Needs the lab (docs/lab.md): `scripts/test --all` runs it with
//! `--include-ignored`. `VMRESTORE_STATES=call_,memfd` restores only the
//! programs whose names begin so.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::path::Path;
use std::time::{Duration, Instant};
use vmrestore_lab::states::{self, Expect, HOME, Program};
use vmrestore_lab::{Lab, Luggage, Rebooted};

const MINUTE: Duration = Duration::from_secs(60);
/// What the report may say of any process: it is about the host.
const OF_THE_HOST: [&str; 1] = ["clocks at the crash"];

/// What became of one program.
struct Row {
    program: Program,
    /// `running`, `refused`, `failed`; `absent` where the kernel has no such thing.
    verdict: String,
    error: String,
    /// (level, text) of each line of the fidelity report.
    report: Vec<(String, String)>,
    /// The program's last word.
    word: String,
}

fn restore(host: &mut Rebooted, program: Program) -> Result<Row> {
    let name = &program.name;
    let said = host.run(&format!("cat {HOME}/out/{name}"), MINUTE)?;
    let mut row = Row {
        verdict: "absent".into(),
        error: String::new(),
        report: Vec::new(),
        word: said.stdout.trim().to_owned(),
        program,
    };
    if row.word.starts_with("ABSENT") {
        return Ok(row);
    }
    // As it was started, whatever programs there are by now.
    if let Some(pid) = row
        .word
        .strip_prefix("READY ")
        .and_then(|pid| pid.parse().ok())
    {
        row.program.pid = pid;
    }
    let pid = row.program.pid;
    let command = format!("vmrestore --json process /dump/hostdump pid:{pid}");
    let output = host.run(&command, 2 * MINUTE)?;
    let Ok(document) = serde_json::from_str::<Value>(&output.stdout) else {
        row.verdict = format!("exit code {}", output.code);
        row.error = output.stderr;
        return Ok(row);
    };
    let result = &document["results"][0];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    row.verdict = text(&result["verdict"]);
    row.error = text(&result["error"]);
    for line in result["fidelity"].as_array().into_iter().flatten() {
        let [level, what, how] = ["level", "what", "how"].map(|key| text(&line[key]));
        if level != "exact" {
            row.report.push((level, format!("{what}: {how}")));
        }
    }
    Ok(row)
}

/// Lets those that run look at their state, and hears their last words.
fn ask(host: &mut Rebooted, rows: &mut [Row]) -> Result<()> {
    let running: Vec<&mut Row> = rows
        .iter_mut()
        .filter(|row| row.verdict == "running")
        .collect();
    let go: Vec<String> = running
        .iter()
        .map(|row| format!("echo GO >> {HOME}/out/{}", row.program.name))
        .collect();
    host.run(&go.join("\n"), MINUTE)?.success("go")?;
    let begin = Instant::now();
    let mut waiting = running;
    while !waiting.is_empty() && begin.elapsed() < 4 * MINUTE {
        std::thread::sleep(Duration::from_secs(2));
        let files: Vec<String> = waiting
            .iter()
            .map(|row| format!("tail -n 1 {HOME}/out/{}", row.program.name))
            .collect();
        let said = host.run(&files.join("\n"), MINUTE)?.success("tail")?.stdout;
        for (row, word) in waiting.iter_mut().zip(said.lines()) {
            row.word = word.to_owned();
        }
        waiting.retain(|row| !row.word.starts_with("PASS") && !row.word.starts_with("FAIL"));
    }
    for row in waiting {
        let pid = row.program.pid;
        let state = format!("grep State /proc/{pid}/status; cat /proc/{pid}/syscall");
        let state = host.run(&state, MINUTE)?.stdout;
        row.word = format!("no word since {:?}: {}", row.word, state.replace('\n', " "));
    }
    Ok(())
}

/// What is wrong with it; `None`: it is as its source says.
fn judge(row: &Row) -> Option<String> {
    let program = &row.program;
    if row.verdict == "absent" {
        return None;
    }
    if let Expect::Refused(words) = &program.expect {
        let refused = row.verdict == "refused" && row.error.contains(words);
        return (!refused).then(|| format!("not refused for {words:?}"));
    }
    if row.verdict != "running" {
        return Some("it does not run".into());
    }
    if row.word != "PASS" {
        return Some("its state is not what it was".into());
    }
    let wanted = match &program.expect {
        Expect::Reconstructed(words) => Some(("reconstructed", words)),
        Expect::Lost(words) => Some(("lost", words)),
        _ => None,
    };
    if let Some((level, words)) = wanted
        && !row
            .report
            .iter()
            .any(|(l, text)| l == level && text.contains(words))
    {
        return Some(format!("the report does not say {level} {words:?}"));
    }
    let allowed = |text: &str| {
        let known = wanted.map(|(_, words)| words.as_str());
        let mut may = OF_THE_HOST.into_iter().chain(known);
        may.any(|words| text.contains(words))
            || program
                .may
                .iter()
                .any(|words| text.contains(words.as_str()))
    };
    row.report
        .iter()
        .find(|(_, text)| !allowed(text))
        .map(|(level, text)| format!("the report says {level} {text:?}"))
}

fn print(row: &Row, wrong: Option<&str>) {
    let mark = if wrong.is_some() { "BAD " } else { "good" };
    println!(
        "{mark} {:28} {:9} {}",
        row.program.name, row.verdict, row.word
    );
    for (level, text) in &row.report {
        println!("       {level} {text}");
    }
    if !row.error.is_empty() {
        println!("       {}", row.error.trim().replace('\n', "\n       "));
    }
    if let Some(wrong) = wrong {
        println!("       EXPECTED {:?}: {wrong}", row.program.expect);
    }
}

#[test]
#[ignore = "needs the lab: scripts/test --all"]
fn every_kind_of_state_comes_back_as_is_said_of_it() -> Result<()> {
    let lab = Lab::prepare()?;
    let dump = lab.dump(&states::scenario().context("no such scenario")?)?;
    let vmrestore = Path::new(env!("CARGO_BIN_EXE_vmrestore"));
    let mut host = lab.reboot(&dump, &Luggage::vmrestore(vmrestore))?;
    let chosen = std::env::var("VMRESTORE_STATES").unwrap_or_default();
    let mut rows = Vec::new();
    for program in states::all()? {
        if chosen
            .split(',')
            .any(|start| program.name.starts_with(start))
        {
            rows.push(restore(&mut host, program)?);
        }
    }
    ask(&mut host, &mut rows)?;
    let mut bad = Vec::new();
    let mut counts = std::collections::BTreeMap::<&str, usize>::new();
    for row in &rows {
        let wrong = judge(row);
        print(row, wrong.as_deref());
        let kind = match (&wrong, row.verdict.as_str(), &row.program.expect) {
            (Some(_), ..) => "bad",
            (_, "absent", _) => "not in this kernel",
            (.., Expect::Exact) => "exact",
            (.., Expect::Reconstructed(_)) => "reconstructed",
            (.., Expect::Lost(_)) => "lost, as said",
            (.., Expect::Refused(_)) => "refused, as said",
        };
        *counts.entry(kind).or_default() += 1;
        bad.extend(wrong.map(|wrong| format!("{}: {wrong}", row.program.name)));
    }
    println!("{} programs: {counts:?}", rows.len());
    // What was refused has left nothing.
    let left = host.run("ls -d /proc/[5-9][0-9][0-9][0-9]", MINUTE)?.stdout;
    for row in rows.iter().filter(|row| row.verdict != "running") {
        let path = format!("/proc/{}\n", row.program.pid);
        ensure!(!left.contains(&path), "{} runs", row.program.name);
    }
    ensure!(bad.is_empty(), "{} are bad:\n{}", bad.len(), bad.join("\n"));
    Ok(())
}

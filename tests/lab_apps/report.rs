//! What became of an application: vmrestore's word, and its client's.

use crate::application::{Application, PROCESSES, step_after};
use anyhow::Result;
use serde_json::Value;
use std::fmt;
use std::time::{Duration, Instant};
use vmrestore_lab::Rebooted;

const RESTORE: Duration = Duration::from_secs(300);
/// A judge may have to do again all that the application did.
const JUDGE: Duration = Duration::from_secs(900);
/// What the report may say of any process: it is about the host, about calls with a timeout, which go
/// on with what was left of it, or about a thread that was on its way out of a futex (docs/syscalls.md).
const OF_ANY: [&str; 3] = [
    "clocks at the crash",
    "calls that go on where they were",
    "it may have been woken from its futex",
];

/// One application's row.
pub struct Row {
    pub application: Application,
    /// `running` if all of its sets are, else the first other verdict.
    verdict: String,
    error: String,
    processes: usize,
    milliseconds: u64,
    /// (level, text) of each line of the fidelity report that is not `exact`.
    report: Vec<(String, String)>,
    /// The client's word, and whether all was well.
    pub judgment: String,
    good: bool,
}

/// Restores it by a command of its own.
pub fn restore(host: &mut Rebooted, application: Application) -> Result<Row> {
    let command = format!(
        "vmrestore --json process /dump/hostdump $({})",
        step_after(&application.name, "selectors")
    );
    let output = host.run(&command, RESTORE)?;
    let mut row = Row {
        application,
        verdict: "running".into(),
        error: String::new(),
        processes: 0,
        milliseconds: 0,
        report: Vec::new(),
        judgment: "not judged".into(),
        good: false,
    };
    let Ok(document) = serde_json::from_str::<Value>(&output.stdout) else {
        row.verdict = format!("exit code {}", output.code);
        row.error = output.stderr;
        return Ok(row);
    };
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    for result in document["results"].as_array().into_iter().flatten() {
        if result["verdict"] != "running" && row.verdict == "running" {
            row.verdict = text(&result["verdict"]);
            row.error = text(&result["error"]);
        }
        row.processes += result["processes"].as_array().map_or(0, Vec::len);
        row.milliseconds += result["milliseconds"].as_u64().unwrap_or(0);
        for line in result["fidelity"].as_array().into_iter().flatten() {
            let [level, subject, what, how] =
                ["level", "subject", "what", "how"].map(|key| text(&line[key]));
            if level != "exact" {
                row.report.push((level, format!("{subject} {what}: {how}")));
            }
        }
    }
    Ok(row)
}

impl Row {
    /// Lets it go on and end, and has its client say what was found.
    pub fn judge(&mut self, host: &mut Rebooted) -> Result<()> {
        if self.verdict != "running" {
            return Ok(());
        }
        let begin = Instant::now();
        let name = &self.application.name;
        let said = host.run(&step_after(name, "judge"), JUDGE)?;
        self.good = said.code == 0;
        let seconds = begin.elapsed().as_secs();
        self.judgment = match self.good {
            true => said.stdout.trim().replace('\n', "; "),
            false => {
                let look = format!(
                    "cd /data/apps/{name}; tail -n 15 said; {PROCESSES}; \
                     for t in /proc/$(cat pid)/task/*; do cat $t/comm $t/syscall | paste - -; done"
                );
                let seen = host.run(&look, RESTORE)?.stdout;
                let words = format!("{}{}", said.stdout, said.stderr);
                format!("WRONG after {seconds} s: {words}\n{seen}")
            }
        };
        Ok(())
    }

    /// What is not as its script says that it is to be.
    pub fn fault(&self) -> Option<String> {
        if let Some(words) = &self.application.refused {
            let refused = self.verdict == "refused" && self.error.contains(words);
            return (!refused).then(|| format!("{}, not refused for {words:?}", self.verdict));
        }
        if self.verdict != "running" {
            return Some(format!("{}: {}", self.verdict, self.error));
        }
        if !self.good {
            return Some(self.judgment.clone());
        }
        let may = self.application.may.iter().map(String::as_str);
        let mut known: Vec<&str> = may.chain(OF_ANY).collect();
        if std::env::var_os("VMRESTORE_APPS_CPUS").is_some() {
            // Who ran on another CPU than the crash may have been anywhere in a call.
            known.push("it was under way in this call, which is made again");
        }
        let strange = |text: &str| !known.iter().any(|words| text.contains(words));
        let found = self.report.iter().find(|(_, text)| strange(text));
        found.map(|(level, text)| format!("the report says {level} {text:?}"))
    }

    /// Its line in the table of docs/processes.md.
    pub fn table_line(&self) -> String {
        let of_it = |(_, text): &&(String, String)| !OF_ANY.iter().any(|w| text.contains(w));
        let losses: Vec<String> = self
            .report
            .iter()
            .filter(of_it)
            .map(|(level, text)| format!("{level} {text}"))
            .collect();
        format!(
            "| {} | {} | {} in {} ms | {} | {} |",
            self.application.name,
            self.processes,
            self.verdict,
            self.milliseconds,
            match losses.is_empty() {
                true => "exact".to_owned(),
                false => losses.join("; "),
            },
            self.judgment.lines().next().unwrap_or_default()
        )
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = &self.application.name;
        write!(
            f,
            "{name}: {} processes {} in {} ms",
            self.processes, self.verdict, self.milliseconds
        )?;
        for (level, text) in &self.report {
            write!(f, "\n    {level} {text}")?;
        }
        match self.error.trim() {
            "" => Ok(()),
            error => write!(f, "\n    {}", error.replace('\n', "\n    ")),
        }
    }
}

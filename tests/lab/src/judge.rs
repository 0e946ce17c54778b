//! The judge: did a guest, or the program, go on as if nothing had happened?
//!
//! It sees only what came out, from before the crash and after the restore,
//! and computes every expected value anew from the nonce. It shares no code
//! with the programs it judges nor with vmrestore.

mod guest;
mod holdings;
mod line;
mod process;
mod reset;

use std::fmt;

use serde::Serialize;

pub use guest::guest;
pub use holdings::holdings;
pub use process::process;
pub use reset::reset_guest;

/// The judge's word.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Verdict {
    /// All that is wrong; empty if it went on without a flaw.
    pub faults: Vec<Fault>,
    /// What must be said although it is no fault: vector registers of a vCPU
    /// that ran at the panic are stale in any dump.
    pub losses: Vec<String>,
    /// Number of the last line seen from outside before the crash.
    pub last_before: u64,
    /// Number of the last line of all.
    pub last_after: u64,
    /// The last lines before the crash, as seen from outside.
    pub lines_before: Vec<String>,
    /// The lines that followed them.
    pub lines_after: Vec<String>,
}

/// One flaw in an output.
#[derive(Clone, Debug, Serialize, PartialEq, Eq)]
pub struct Fault {
    /// Line of the output, from 1; 0 where no line is meant.
    pub line: usize,
    /// What is wrong.
    pub what: String,
    /// The line as it stands.
    pub text: String,
}

/// Lines shown on each side of the crash.
const SHOWN: usize = 5;
/// After so many faults the rest is not listed.
const MOST_FAULTS: usize = 20;

impl Verdict {
    /// True if nothing was lost, doubled, torn or wrong.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.faults.is_empty()
    }

    /// One word for a table: `whole`, `stale` (whole, but for vector registers
    /// that no dump holds), or the first fault.
    #[must_use]
    pub fn word(&self) -> String {
        match (self.faults.first(), self.losses.is_empty()) {
            (Some(fault), _) => format!("FAULT: {fault}"),
            (None, true) => "whole".into(),
            (None, false) => "stale".into(),
        }
    }

    /// The last lines before the crash and the first after the restore, for
    /// people to see with their own eyes. Lines are cut to `width` characters.
    #[must_use]
    pub fn around(&self, name: &str, width: usize) -> String {
        let cut = |line: &String| line.chars().take(width).collect::<String>();
        let mut text = format!("{name}, the last lines before the crash:\n");
        for line in &self.lines_before {
            text += &format!("  │ {}\n", cut(line));
        }
        text += &format!("{name}, the first lines after the restore:\n");
        for line in &self.lines_after {
            text += &format!("  ▶ {}\n", cut(line));
        }
        text
    }

    fn fault(&mut self, line: usize, what: impl Into<String>, text: &str) {
        if self.faults.len() < MOST_FAULTS {
            self.faults.push(Fault {
                line,
                what: what.into(),
                text: text.chars().take(300).collect(),
            });
        }
    }

    /// What was seen before the crash must be the beginning of the whole.
    fn compare_beginning(&mut self, before: &[u8], after: &[u8]) {
        if after.starts_with(before) {
            return;
        }
        let same = before.iter().zip(after).take_while(|(a, b)| a == b).count();
        let line = 1 + before[..same].iter().filter(|byte| **byte == b'\n').count();
        self.fault(
            line,
            format!(
                "byte {same} of {} seen before the crash is not what the file holds ({} bytes)",
                before.len(),
                after.len()
            ),
            &String::from_utf8_lossy(&before[same..]),
        );
    }

    /// Enough must have come after what was seen before the crash.
    fn compare_numbers(&mut self, new_lines: usize) {
        let new = self.last_after.saturating_sub(self.last_before);
        if new < new_lines as u64 {
            self.fault(
                0,
                format!("only {new} new lines after the restore, {new_lines} wanted"),
                "",
            );
        }
    }

    /// Keeps the lines around the crash, for people.
    fn keep_lines(&mut self, before: &[u8], after: &[u8]) {
        let whole = |bytes: &[u8]| -> Vec<String> {
            let text = String::from_utf8_lossy(bytes).into_owned();
            let mut lines: Vec<String> = text.split('\n').map(str::to_owned).collect();
            lines.pop();
            lines
        };
        let seen = whole(before);
        self.lines_before = seen[seen.len().saturating_sub(SHOWN)..].to_vec();
        self.lines_after = whole(after)
            .into_iter()
            .skip(seen.len())
            .take(SHOWN)
            .collect();
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{}", self.what),
            line => write!(f, "line {line}: {}: {:?}", self.what, self.text),
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} (n={} before the crash, n={} at the end)",
            if self.is_good() { "good" } else { "BAD" },
            self.last_before,
            self.last_after
        )?;
        for loss in &self.losses {
            write!(f, "\n  lost: {loss}")?;
        }
        for fault in &self.faults {
            write!(f, "\n  fault: {fault}")?;
        }
        Ok(())
    }
}

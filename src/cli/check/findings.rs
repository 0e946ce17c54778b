//! What was looked at, what was seen, and whether it is good.

use crate::cli::exit::Exit;
use serde::Serialize;

/// One thing that was looked at.
#[derive(Debug, Serialize)]
pub(super) struct Finding {
    /// What was looked at.
    pub what: String,
    /// What was seen.
    pub found: String,
    pub verdict: Verdict,
    /// What to do when it is not good.
    pub hint: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Verdict {
    Good,
    /// Worth knowing; nothing speaks against a restore.
    Note,
    Bad,
}

/// All findings, in the order in which they were made, and what they make of the exit code.
#[derive(Debug, Default)]
pub(super) struct Findings {
    pub list: Vec<Finding>,
    pub exit: Exit,
    printed: usize,
}

impl Findings {
    pub fn good(&mut self, what: impl Into<String>, found: impl Into<String>) {
        self.push(what.into(), found.into(), Verdict::Good, None);
    }

    pub fn note(&mut self, what: impl Into<String>, found: impl Into<String>) {
        self.push(what.into(), found.into(), Verdict::Note, None);
    }

    /// The first that is bad decides the exit code.
    pub fn bad(
        &mut self,
        exit: Exit,
        what: impl Into<String>,
        found: impl Into<String>,
        hint: &str,
    ) {
        if self.exit == Exit::Done {
            self.exit = exit;
        }
        let hint = (!hint.is_empty()).then(|| hint.to_owned());
        self.push(what.into(), found.into(), Verdict::Bad, hint);
    }

    fn push(&mut self, what: String, found: String, verdict: Verdict, hint: Option<String>) {
        let clean = |s: String| s.replace(|c: char| c.is_control(), "?");
        self.list.push(Finding {
            what: clean(what),
            found: clean(found),
            verdict,
            hint,
        });
    }

    /// Prints what was found since the last time, under a title.
    pub fn print(&mut self, title: &str) {
        let new = &self.list[self.printed..];
        self.printed = self.list.len();
        if new.is_empty() {
            return;
        }
        if !title.is_empty() {
            println!("{title}");
        }
        let width = new.iter().map(|f| f.what.chars().count()).max();
        let width = width.unwrap_or(0);
        for (index, f) in new.iter().enumerate() {
            let mark = match f.verdict {
                Verdict::Good => "ok  ",
                Verdict::Note => "note",
                Verdict::Bad => "BAD ",
            };
            println!("{mark}  {:<width$}  {}", f.what, f.found);
            // Once for all that it helps against.
            let next = new.get(index + 1).and_then(|n| n.hint.as_ref());
            if let Some(hint) = f.hint.as_ref().filter(|h| next != Some(h)) {
                println!("      {:<width$}  hint: {hint}", "");
            }
        }
    }
}

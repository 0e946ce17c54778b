//! `vmrestore process DUMP` on a terminal: what ran at the crash, to choose
//! from. What is typed filters; what is chosen is restored, and the list comes
//! again for the next.

mod keys;

use super::exit::{Exit, Failure};
use super::report::printable;
use super::select;
use super::table::bytes;
use crate::dump::PAGE_SIZE;
use crate::extract::DeadHost;
use crate::extract::coverage::State;
use crate::sys::terminal::{self, RawMode};
use crate::task::ProcessSummary;
use keys::{Key, keys};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{IsTerminal, Read, Write};

/// Rows that are not processes: the filter, the titles, the help.
const FRAME: usize = 4;
const HELP: &str =
    "type: filter  ↑↓: move  Tab: mark  ^T: with all below  Enter: restore  Esc: end";

/// Whether there is a terminal to choose on.
pub fn is_possible(json: bool) -> bool {
    !json && std::io::stdin().is_terminal() && std::io::stderr().is_terminal()
}

/// Lets the person choose and restores what was chosen, until there is no more.
///
/// # Errors
/// When the terminal cannot be used.
pub fn run(
    dead: &DeadHost,
    all: &[ProcessSummary],
    mut restore: impl FnMut(&[i32]) -> Result<Exit, Failure>,
) -> Result<Exit, Failure> {
    let rows = all
        .iter()
        .filter(|p| !p.kernel_thread && !matches!(p.state, 'Z' | 'X'))
        .cloned()
        .collect();
    let mut picker = Picker::new(rows);
    let mut worst = Exit::Done;
    loop {
        match choose(&mut picker, dead)? {
            None => return Ok(worst),
            Some(chosen) => {
                let pids = picker.with_trees(&chosen);
                let exit = restore(&pids).unwrap_or_else(|failure| {
                    failure.print();
                    failure.exit
                });
                worst = worst.max(exit);
                if matches!(exit, Exit::Done | Exit::WithLosses) {
                    picker.gone.extend(&pids);
                }
                eprintln!("\nEnter: the list again");
                let mut line = String::new();
                std::io::stdin().read_line(&mut line)?;
            }
        }
    }
}

/// Shows the list until something is chosen (or nothing: `None`).
fn choose(picker: &mut Picker, dead: &DeadHost) -> Result<Option<Vec<i32>>, Failure> {
    let Some(_raw) = RawMode::of_stdin() else {
        return Err(Failure::new(
            Exit::Usage,
            "the terminal cannot be used to choose on",
            "name the processes: pid:N, or a command name",
        ));
    };
    let mut input = std::io::stdin().lock();
    let mut held = Vec::new();
    loop {
        let (height, width) = terminal::size().unwrap_or((24, 80));
        picker.room = usize::from(height).saturating_sub(FRAME).max(1);
        let shown: Vec<(i32, u64)> = picker.shown().map(|p| (p.pid, p.task)).collect();
        for (pid, task) in shown {
            // Only of what is seen: it takes its time.
            picker
                .states
                .entry(pid)
                .or_insert_with(|| dead.coverage(task).map_or(State::Unreadable, |c| c.state()));
        }
        let mut out = std::io::stderr().lock();
        out.write_all(b"\x1b[H\x1b[2J")?;
        for line in picker.draw(usize::from(width)) {
            write!(out, "{line}\r\n")?;
        }
        out.flush()?;
        let mut buffer = [0; 64];
        let got = input.read(&mut buffer)?;
        if got == 0 {
            return Ok(None);
        }
        held.extend_from_slice(buffer.get(..got).unwrap_or_default());
        for key in keys(&mut held) {
            match picker.key(key) {
                Action::Stay => {}
                Action::End => {
                    out.write_all(b"\x1b[H\x1b[2J")?;
                    return Ok(None);
                }
                Action::Restore(pids) => {
                    out.write_all(b"\x1b[H\x1b[2J")?;
                    return Ok(Some(pids));
                }
            }
        }
    }
}

/// What follows from a key.
#[derive(Debug, PartialEq, Eq)]
enum Action {
    Stay,
    Restore(Vec<i32>),
    End,
}

/// The list, and where the person is in it.
struct Picker {
    all: Vec<ProcessSummary>,
    filter: String,
    /// Place among those that the filter leaves.
    at: usize,
    /// First of them on the screen.
    top: usize,
    /// How many fit.
    room: usize,
    marked: BTreeSet<i32>,
    /// Restored already.
    gone: BTreeSet<i32>,
    /// With each, all that descend from it.
    trees: bool,
    states: BTreeMap<i32, State>,
}

impl Picker {
    fn new(all: Vec<ProcessSummary>) -> Self {
        Self {
            all,
            filter: String::new(),
            at: 0,
            top: 0,
            room: 20,
            marked: BTreeSet::new(),
            gone: BTreeSet::new(),
            trees: false,
            states: BTreeMap::new(),
        }
    }

    /// Those that the filter leaves: all of its words are in the line.
    fn left(&self) -> Vec<&ProcessSummary> {
        let filter = self.filter.to_lowercase();
        let words: Vec<&str> = filter.split_whitespace().collect();
        self.all
            .iter()
            .filter(|p| {
                let line = format!("{} {} {}", p.pid, p.comm, p.cgroup).to_lowercase();
                words.iter().all(|word| line.contains(word))
            })
            .collect()
    }

    /// Those on the screen.
    fn shown(&self) -> impl Iterator<Item = &ProcessSummary> {
        self.left().into_iter().skip(self.top).take(self.room)
    }

    fn key(&mut self, key: Key) -> Action {
        let count = self.left().len();
        let last = count.saturating_sub(1);
        match key {
            Key::End => return Action::End,
            Key::Char(c) => {
                self.filter.push(c);
                self.at = 0;
            }
            Key::Back => {
                self.filter.pop();
                self.at = 0;
            }
            Key::Up => self.at = self.at.saturating_sub(1),
            Key::Down => self.at = (self.at + 1).min(last),
            Key::PageUp => self.at = self.at.saturating_sub(self.room),
            Key::PageDown => self.at = (self.at + self.room).min(last),
            Key::Tree => self.trees = !self.trees,
            Key::Mark => {
                if let Some(pid) = self.current()
                    && !self.marked.remove(&pid)
                {
                    self.marked.insert(pid);
                }
                self.at = (self.at + 1).min(last);
            }
            Key::Enter => {
                let mut chosen: Vec<i32> = std::mem::take(&mut self.marked).into_iter().collect();
                if chosen.is_empty() {
                    chosen.extend(self.current());
                }
                if !chosen.is_empty() {
                    return Action::Restore(chosen);
                }
            }
        }
        self.at = self.at.min(self.left().len().saturating_sub(1));
        if self.at < self.top {
            self.top = self.at;
        } else if self.at >= self.top + self.room {
            self.top = self.at + 1 - self.room;
        }
        Action::Stay
    }

    fn current(&self) -> Option<i32> {
        self.left().get(self.at).map(|p| p.pid)
    }

    /// What was chosen, with what descends from it if that was asked for.
    fn with_trees(&self, chosen: &[i32]) -> Vec<i32> {
        let mut all = Vec::new();
        for pid in chosen {
            let tree = select::set(&self.all, &format!("pid:{pid}"), self.trees);
            for pid in tree.unwrap_or_else(|_| vec![*pid]) {
                if !all.contains(&pid) {
                    all.push(pid);
                }
            }
        }
        all
    }

    /// The lines of the screen, none wider than it.
    fn draw(&self, width: usize) -> Vec<String> {
        let cut = |line: String| -> String { line.chars().take(width.saturating_sub(1)).collect() };
        let left = self.left();
        let trees = if self.trees { "  with all below" } else { "" };
        let mut lines = vec![
            cut(format!(
                "restore which? {}▏  {} of {}, {} marked{trees}",
                printable(&self.filter),
                left.len(),
                self.all.len(),
                self.marked.len()
            )),
            cut("       PID    PPID     MEMORY        CPU  S STATE       COMMAND".into()),
        ];
        for (at, p) in left.iter().enumerate().skip(self.top).take(self.room) {
            let mark = match (self.marked.contains(&p.pid), self.gone.contains(&p.pid)) {
                (_, true) => '=',
                (true, _) => '*',
                _ => ' ',
            };
            let state = self.states.get(&p.pid).map(State::to_string);
            let line = cut(format!(
                "{}{mark}{:>8}{:>8} {:>10} {:>9}s  {} {:<11} {}",
                if at == self.at { '>' } else { ' ' },
                p.pid,
                p.ppid,
                bytes(p.rss_pages.saturating_mul(PAGE_SIZE)),
                p.cpu_ns / 1_000_000_000,
                p.state,
                if self.gone.contains(&p.pid) {
                    "restored".into()
                } else {
                    state.unwrap_or_default()
                },
                printable(&p.comm)
            ));
            lines.push(if at == self.at {
                format!("\x1b[7m{line}\x1b[0m")
            } else {
                line
            });
        }
        lines.push(cut(HELP.into()));
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picker() -> Picker {
        let process = |pid: i32, ppid: i32, comm: &str| ProcessSummary {
            pid,
            ppid,
            comm: comm.into(),
            uid: 0,
            state: 'S',
            threads: 1,
            rss_pages: 256,
            pgid: pid,
            sid: pid,
            cpu_ns: 3_000_000_000,
            cgroup: String::new(),
            kernel_thread: false,
            task: 1,
            start_time: 0,
            problem: None,
        };
        let mut all = vec![
            process(10, 1, "bash"),
            process(11, 10, "python3"),
            process(12, 11, "sleep"),
        ];
        all.extend((100..200).map(|pid| process(pid, 1, "worker")));
        let mut picker = Picker::new(all);
        picker.room = 10;
        picker
    }

    fn press(picker: &mut Picker, sent: &[u8]) -> Action {
        let mut held = sent.to_vec();
        let mut last = Action::Stay;
        for key in keys(&mut held) {
            last = picker.key(key);
        }
        assert!(held.is_empty());
        last
    }

    #[test]
    fn what_is_typed_filters_and_enter_restores() {
        let mut picker = picker();
        assert_eq!(press(&mut picker, b"pyt\r"), Action::Restore(vec![11]));
        assert_eq!(picker.with_trees(&[11]), [11]);
        // With all below.
        press(&mut picker, b"\x14");
        assert_eq!(picker.with_trees(&[11]), [11, 12]);
        // The filter is taken back; two are marked.
        press(&mut picker, b"\x7f\x7f\x7fwork\t\t");
        assert_eq!(press(&mut picker, b"\r"), Action::Restore(vec![100, 101]));
        // What nothing matches cannot be restored.
        assert_eq!(press(&mut picker, b"zzz\r"), Action::Stay);
        assert_eq!(press(&mut picker, b"\x1b"), Action::End);
    }

    #[test]
    fn the_list_moves_with_the_choice_and_fits_the_screen() {
        let mut picker = picker();
        for _ in 0..30 {
            press(&mut picker, b"\x1b[B");
        }
        assert_eq!(picker.current(), Some(127));
        assert!(picker.shown().any(|p| p.pid == 127));
        press(
            &mut picker,
            b"\x1b[6~\x1b[6~\x1b[6~\x1b[6~\x1b[6~\x1b[6~\x1b[6~\x1b[6~",
        );
        assert_eq!(picker.current(), Some(199));
        let lines = picker.draw(40);
        assert!(lines.len() <= 10 + FRAME);
        for line in &lines {
            let plain = line.replace("\x1b[7m", "").replace("\x1b[0m", "");
            assert!(plain.chars().count() < 40, "{line}");
        }
        // Keys that it does not know change nothing.
        press(&mut picker, b"\x1b[15~\x01");
        assert_eq!((picker.current(), picker.filter.as_str()), (Some(199), ""));
    }

    #[test]
    fn half_a_character_waits_for_its_other_half() {
        let mut held = "é".as_bytes()[..1].to_vec();
        assert_eq!(keys(&mut held), []);
        held.push("é".as_bytes()[1]);
        assert_eq!(keys(&mut held), [Key::Char('é')]);
    }
}

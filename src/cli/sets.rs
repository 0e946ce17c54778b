//! What the command line chose, as sets of processes that are restored
//! together: all of a set, or nothing of it.

use super::args::SetArgs;
use super::exit::{Exit, Failure};
use super::select;
use crate::task::{ProcessSummary, Together};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

/// Longest file of selectors. Bytes.
const LONGEST: u64 = 1 << 20;

/// What was chosen.
#[derive(Debug, Default)]
pub struct Choice {
    /// PIDs, each once, in the order in which they were named.
    pub pids: Vec<i32>,
    /// Selectors of a file that nothing matches.
    pub missed: Vec<String>,
}

/// Whether anything is said of which processes.
pub fn is_named(selectors: &[String], args: &SetArgs) -> bool {
    let SetArgs {
        tree: _,
        all_of_user,
        cgroup,
        unit,
        file,
    } = args;
    let lists = [selectors, all_of_user, cgroup, unit];
    lists.iter().any(|list| !list.is_empty()) || file.is_some()
}

/// All processes that are named.
///
/// # Errors
/// One on the command line that nothing matches; a file that cannot be read.
pub fn chosen(
    processes: &[ProcessSummary],
    selectors: &[String],
    args: &SetArgs,
) -> Result<Choice, Failure> {
    let mut choice = Choice::default();
    let with = |word: &str, names: &[String]| -> Vec<String> {
        names.iter().map(|name| format!("{word}:{name}")).collect()
    };
    let named = selectors
        .iter()
        .cloned()
        .chain(with("user", &args.all_of_user))
        .chain(with("cgroup", &args.cgroup))
        .chain(with("unit", &args.unit));
    for selector in named {
        choice.add(select::set(processes, &selector, args.tree)?);
    }
    for selector in args.file.as_deref().map_or(Ok(Vec::new()), read)? {
        match select::set(processes, &selector, args.tree) {
            Ok(pids) => choice.add(pids),
            Err(failure) => {
                eprintln!("warning: {}", failure.chain());
                choice.missed.push(selector);
            }
        }
    }
    if choice.pids.is_empty() {
        return Err(Failure::new(
            Exit::NoMatch,
            "none of the selectors matches a process",
            "`vmrestore list DUMP` shows what there is",
        ));
    }
    Ok(choice)
}

impl Choice {
    fn add(&mut self, pids: Vec<i32>) {
        for pid in pids {
            if !self.pids.contains(&pid) {
                self.pids.push(pid);
            }
        }
    }
}

/// The selectors in a file.
fn read(path: &Path) -> Result<Vec<String>, Failure> {
    use std::io::Read;
    let mut text = String::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(LONGEST).read_to_string(&mut text))
        .map_err(|error| {
            Failure::new(
                Exit::Usage,
                format!("{}: {error}", path.display()),
                "a selector on each line, # begins a comment",
            )
        })?;
    Ok(lines(&text))
}

fn lines(text: &str) -> Vec<String> {
    text.lines()
        .map(|line| line.split('#').next().unwrap_or_default().trim())
        .filter(|line| !line.is_empty())
        .map(str::to_owned)
        .collect()
}

/// Parts the chosen processes into sets that have nothing to do with each
/// other: no parent, session, group or shared thing in common.
pub fn apart(processes: &[ProcessSummary], together: &[Together], chosen: &[i32]) -> Vec<Vec<i32>> {
    let place: HashMap<i32, usize> = chosen.iter().enumerate().map(|(at, p)| (*p, at)).collect();
    let mut joined = Joined((0..chosen.len()).collect());
    let mut sessions: HashMap<i32, usize> = HashMap::new();
    let mut groups: HashMap<i32, usize> = HashMap::new();
    for process in processes {
        let Some(&at) = place.get(&process.pid) else {
            continue;
        };
        if let Some(&parent) = place.get(&process.ppid) {
            joined.join(at, parent);
        }
        for (id, known) in [(process.sid, &mut sessions), (process.pgid, &mut groups)] {
            if id > 0 {
                let other = *known.entry(id).or_insert(at);
                joined.join(at, other);
            }
        }
    }
    for set in together {
        let mut members = set.pids.iter().filter_map(|pid| place.get(pid).copied());
        if let Some(first) = members.next() {
            for other in members {
                joined.join(first, other);
            }
        }
    }
    let mut sets: BTreeMap<usize, Vec<i32>> = BTreeMap::new();
    for (at, pid) in chosen.iter().enumerate() {
        sets.entry(joined.first(at)).or_default().push(*pid);
    }
    sets.into_values().collect()
}

/// Which are one set: each points to an earlier member, the first to itself.
struct Joined(Vec<usize>);

impl Joined {
    fn first(&mut self, mut at: usize) -> usize {
        while let Some(up) = self.0.get(at).copied()
            && up != at
        {
            // The way is shorter for the next.
            let further = self.0.get(up).copied().unwrap_or(up);
            if let Some(slot) = self.0.get_mut(at) {
                *slot = further;
            }
            at = further;
        }
        at
    }

    fn join(&mut self, a: usize, b: usize) {
        let (a, b) = (self.first(a), self.first(b));
        if let Some(slot) = self.0.get_mut(a.max(b)) {
            *slot = a.min(b);
        }
    }
}

/// With whom each process shares something. Of a large set the others are named
/// only as far as anybody would read.
pub fn by_process(together: &[Together]) -> BTreeMap<i32, BTreeSet<i32>> {
    const MOST: usize = 16;
    let mut ties: BTreeMap<i32, BTreeSet<i32>> = BTreeMap::new();
    for shared in together {
        for pid in &shared.pids {
            let others = shared.pids.iter().filter(|other| *other != pid);
            ties.entry(*pid).or_default().extend(others.take(MOST));
        }
    }
    ties
}

/// What processes outside of a set share with those in it.
pub fn cut<'t>(together: &'t [Together], set: &[i32]) -> Vec<(&'t Together, Vec<i32>)> {
    together
        .iter()
        .filter_map(|shared| {
            let others: Vec<i32> = shared
                .pids
                .iter()
                .copied()
                .filter(|pid| !set.contains(pid))
                .collect();
            let touched = others.len() < shared.pids.len();
            (touched && !others.is_empty()).then_some((shared, others))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::TieKind;

    fn process(pid: i32, ppid: i32, sid: i32) -> ProcessSummary {
        ProcessSummary {
            pid,
            ppid,
            comm: "p".into(),
            uid: 0,
            state: 'S',
            threads: 1,
            rss_pages: 0,
            pgid: pid,
            sid,
            cpu_ns: 0,
            cgroup: String::new(),
            kernel_thread: false,
            task: 1,
            start_time: 0,
            problem: None,
        }
    }

    #[test]
    fn what_belongs_together_is_one_set() {
        let all = [
            process(10, 1, 10),
            process(11, 10, 11),
            process(12, 1, 12),
            process(13, 1, 13),
            process(14, 1, 13),
            process(15, 1, 15),
        ];
        let pipe = Together {
            by: TieKind::Pipe,
            pids: vec![11, 12, 99],
        };
        let sets = apart(&all, std::slice::from_ref(&pipe), &[15, 14, 13, 12, 11, 10]);
        assert_eq!(sets, [vec![15], vec![14, 13], vec![12, 11, 10]]);
        // A parent that was not chosen ties nobody.
        assert_eq!(apart(&all, &[], &[11, 12]), [vec![11], vec![12]]);
        let shared = [pipe];
        let cut = cut(&shared, &[10, 11]);
        assert_eq!(cut.len(), 1);
        assert_eq!(cut[0].1, [12, 99]);
    }

    #[test]
    fn a_file_of_selectors_has_comments() {
        let text = "# after a crash\nunit:nginx  # the web\n\n  tree:pid:7\n";
        assert_eq!(lines(text), ["unit:nginx", "tree:pid:7"]);
    }
}

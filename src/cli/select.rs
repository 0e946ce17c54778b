//! What a selector means: a guest's number, name or UUID, a PID, a command name.

use super::exit::{Exit, Failure};
use crate::guest::GuestSummary;
use crate::task::ProcessSummary;

/// The guests that the selectors name, in the order in which they are named; all in the order of
/// `guests`, when there is no selector.
///
/// # Errors
/// A selector that no guest answers to.
pub fn guests<'a>(
    guests: &'a [GuestSummary],
    selectors: &[String],
) -> Result<Vec<&'a GuestSummary>, Failure> {
    if let Some(wrong) = selectors
        .iter()
        .find(|s| !guests.iter().enumerate().any(|(i, g)| is_guest(g, i, s)))
    {
        return Err(no_match("guest", wrong));
    }
    let mut chosen: Vec<(usize, &GuestSummary)> = guests
        .iter()
        .enumerate()
        .filter_map(|(i, g)| match selectors {
            [] => Some((i, g)),
            _ => Some((selectors.iter().position(|s| is_guest(g, i, s))?, g)),
        })
        .collect();
    chosen.sort_by_key(|(place, _)| *place);
    Ok(chosen.into_iter().map(|(_, guest)| guest).collect())
}

/// The processes that the selectors name, one each.
///
/// # Errors
/// A selector that no process, or a kernel thread, answers to; a command name
/// that several processes have.
pub fn processes<'a>(
    processes: &'a [ProcessSummary],
    selectors: &[String],
) -> Result<Vec<&'a ProcessSummary>, Failure> {
    let mut chosen: Vec<&ProcessSummary> = Vec::new();
    for selector in selectors {
        let found = one_process(processes, selector)?;
        if !chosen.iter().any(|p| p.pid == found.pid) {
            chosen.push(found);
        }
    }
    Ok(chosen)
}

/// The PIDs that a selector of processes names, which may name a set: `tree:SELECTOR`,
/// `user:NAME`, `cgroup:PATH`, `unit:NAME`. `tree`: a single one, with all that descend from it.
///
/// # Errors
/// None answers to it.
pub fn set(processes: &[ProcessSummary], selector: &str, tree: bool) -> Result<Vec<i32>, Failure> {
    let members = |wanted: &dyn Fn(&ProcessSummary) -> bool| -> Result<Vec<i32>, Failure> {
        let found: Vec<i32> = processes
            .iter()
            .filter(|p| can_be_member(p) && wanted(p))
            .map(|p| p.pid)
            .collect();
        if found.is_empty() {
            return Err(no_match("process", selector));
        }
        Ok(found)
    };
    match selector.split_once(':') {
        Some(("tree", of)) => set(processes, of, true),
        Some(("user", name)) => {
            let uid = user(name)?;
            members(&|p| p.uid == uid)
        }
        Some(("cgroup", path)) => {
            let path = format!("/{}", path.trim_matches('/'));
            members(&|p| below(&p.cgroup, &path))
        }
        Some(("unit", name)) => {
            let name = if name.contains('.') {
                name.to_owned()
            } else {
                format!("{name}.service")
            };
            members(&|p| p.cgroup.split('/').any(|part| part == name))
        }
        _ => {
            let root = one_process(processes, selector)?.pid;
            Ok(if tree {
                descendants(processes, root)
            } else {
                vec![root]
            })
        }
    }
}

/// Threads of the kernel, the dead, and the first process are in no set.
fn can_be_member(process: &ProcessSummary) -> bool {
    !process.kernel_thread && !matches!(process.state, 'Z' | 'X') && process.pid > 1
}

/// Whether a cgroup is another, or below it.
fn below(cgroup: &str, of: &str) -> bool {
    of == "/"
        || cgroup
            .strip_prefix(of)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// A user's number, by what this host knows of names.
fn user(name: &str) -> Result<u32, Failure> {
    if let Ok(uid) = name.parse() {
        return Ok(uid);
    }
    match nix::unistd::User::from_name(name) {
        Ok(Some(user)) => Ok(user.uid.as_raw()),
        _ => Err(Failure::new(
            Exit::NoMatch,
            format!("this host knows no user {name:?}"),
            "name it by its number, as `vmrestore list DUMP` shows it",
        )),
    }
}

/// A process and all that descend from it, parents first. A damaged dump may
/// have parents in a circle.
fn descendants(processes: &[ProcessSummary], root: i32) -> Vec<i32> {
    let mut found = vec![root];
    let mut seen = std::collections::HashSet::from([root]);
    let mut at = 0;
    while let Some(parent) = found.get(at).copied() {
        let children = processes
            .iter()
            .filter(|p| p.ppid == parent && can_be_member(p) && seen.insert(p.pid));
        found.extend(children.map(|p| p.pid));
        at += 1;
    }
    found
}

fn one_process<'a>(
    processes: &'a [ProcessSummary],
    selector: &str,
) -> Result<&'a ProcessSummary, Failure> {
    let found: Vec<_> = match pid_of(selector) {
        Some(pid) => processes.iter().filter(|p| p.pid == pid).collect(),
        None => processes
            .iter()
            .filter(|p| p.comm == selector && !p.kernel_thread)
            .collect(),
    };
    match found.as_slice() {
        [] => Err(no_match("process", selector)),
        [p] if p.kernel_thread => Err(Failure::new(
            Exit::NoMatch,
            format!("pid {} ({}) is a kernel thread", p.pid, p.comm),
            "only processes of user space can be restored",
        )),
        [p] => Ok(p),
        many => {
            let pids: Vec<String> = many.iter().map(|p| format!("pid:{}", p.pid)).collect();
            Err(Failure::new(
                Exit::Usage,
                format!("{selector:?} names {} processes", many.len()),
                format!("choose among {}", pids.join(", ")),
            ))
        }
    }
}

/// `pid:N` or plain digits.
fn pid_of(selector: &str) -> Option<i32> {
    selector
        .strip_prefix("pid:")
        .unwrap_or(selector)
        .parse()
        .ok()
}

fn is_guest(guest: &GuestSummary, index: usize, selector: &str) -> bool {
    if let Some(pid) = selector.strip_prefix("pid:") {
        return pid.parse() == Ok(guest.pid);
    }
    selector.parse() == Ok(index + 1)
        || guest.name.as_deref() == Some(selector)
        || guest
            .uuid
            .as_deref()
            .is_some_and(|u| u.eq_ignore_ascii_case(selector))
}

fn no_match(kind: &str, selector: &str) -> Failure {
    Failure::new(
        Exit::NoMatch,
        format!("no {kind} matches {selector:?}"),
        "`vmrestore list DUMP` shows what there is",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(pid: i32, ppid: i32, comm: &str, cgroup: &str) -> ProcessSummary {
        ProcessSummary {
            pid,
            ppid,
            comm: comm.into(),
            uid: 1000,
            state: 'S',
            threads: 1,
            rss_pages: 1,
            pgid: pid,
            sid: pid,
            cpu_ns: 0,
            cgroup: cgroup.into(),
            kernel_thread: false,
            task: 1,
            start_time: 0,
            problem: None,
        }
    }

    fn some() -> Vec<ProcessSummary> {
        let mut all = vec![
            process(1, 0, "init", "/init.scope"),
            process(20, 1, "nginx", "/system.slice/nginx.service"),
            process(21, 20, "nginx", "/system.slice/nginx.service"),
            process(22, 20, "nginx", "/system.slice/nginx.service/below"),
            process(30, 1, "other", "/system.slice/nginx.service2"),
            process(31, 30, "dead", "/system.slice/nginx.service2"),
        ];
        all[5].state = 'Z';
        all[4].uid = 0;
        all
    }

    #[test]
    fn sets_have_all_their_members_and_no_others() {
        let all = some();
        let named = |selector: &str, tree| set(&all, selector, tree).ok();
        assert_eq!(named("pid:20", false), Some(vec![20]));
        assert_eq!(named("pid:20", true), Some(vec![20, 21, 22]));
        assert_eq!(named("tree:20", false), Some(vec![20, 21, 22]));
        assert_eq!(named("tree:other", false), Some(vec![30]));
        assert_eq!(named("unit:nginx", false), Some(vec![20, 21, 22]));
        let slice = "cgroup:/system.slice/nginx.service/";
        assert_eq!(named(slice, false), Some(vec![20, 21, 22]));
        assert_eq!(
            named("cgroup:system.slice", false),
            Some(vec![20, 21, 22, 30])
        );
        assert_eq!(named("user:1000", false), Some(vec![20, 21, 22]));
        assert_eq!(named("user:0", false), Some(vec![30]));
        for nobody in [
            "unit:apache",
            "cgroup:/system.slice/ngin",
            "user:7",
            "nginx",
        ] {
            assert_eq!(named(nobody, false), None, "{nobody}");
        }
    }

    #[test]
    fn a_circle_of_parents_ends() {
        let mut all = some();
        all[1].ppid = 22;
        assert_eq!(set(&all, "tree:20", false).ok(), Some(vec![20, 21, 22]));
    }
}

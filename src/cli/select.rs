//! What a selector means: a guest's number, name or UUID, a PID, a command name.

use super::exit::{Exit, Failure};
use crate::guest::GuestSummary;
use crate::task::ProcessSummary;

/// The guests that the selectors name, in the order of `guests`; all, when
/// there is no selector.
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
    Ok(guests
        .iter()
        .enumerate()
        .filter(|(i, g)| selectors.is_empty() || selectors.iter().any(|s| is_guest(g, *i, s)))
        .map(|(_, g)| g)
        .collect())
}

/// The processes that the selectors name.
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

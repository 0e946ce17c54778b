//! The one sentence that it all comes to.

use super::guests::{GuestReport, Guests};
use crate::extract::coverage::State;
use std::path::Path;

/// What can be done now, in one sentence.
pub(super) fn sentence(guests: &Guests, dump: &Path) -> String {
    let dump = dump.display();
    let n = guests.list.len();
    if n == 0 {
        let p = &guests.processes;
        return match p.whole {
            0 => "No guest ran on this host, and no process is whole in the dump.".into(),
            _ => format!(
                "No guest ran on this host; {} of {} processes are whole: vmrestore process {dump} pid:N",
                p.whole, p.total
            ),
        };
    }
    let whole = count(&guests.list, |g| g.state == State::Whole || g.restorable);
    let here: Vec<&GuestReport> = guests.list.iter().filter(|g| g.restorable).collect();
    let first = guests.list.iter().find_map(|g| g.obstacle.as_deref());
    if whole == 0 {
        let why = why_not_whole(&guests.list);
        return match n {
            1 => format!("The guest cannot be restored from this dump: {why}."),
            _ => format!("None of the {n} guests can be restored from this dump: {why}."),
        };
    }
    if let Some(obstacle) = &guests.host_obstacle {
        return match n {
            1 => format!("The guest is whole in this dump; to restore it here, {obstacle}."),
            _ => format!(
                "{whole} of {n} guests are whole in this dump; to restore them here, {obstacle}."
            ),
        };
    }
    if here.is_empty() {
        let first = first.unwrap_or("see above");
        return match n {
            1 => format!("The guest is whole in this dump, but cannot be restored here: {first}."),
            _ => format!(
                "{whole} of {n} guests are whole in this dump, but none can be restored here: {first}."
            ),
        };
    }
    let names = match here.len() == n {
        true => String::new(),
        false => here.iter().map(|g| format!(" {}", selector(g))).collect(),
    };
    format!(
        "{} of {n} guest{} can be restored here: vmrestore guests {dump}{names}",
        here.len(),
        plural(n)
    )
}

/// Why none is whole: the reason of most.
fn why_not_whole(guests: &[GuestReport]) -> &'static str {
    let reasons = [
        (State::Filtered, "the dump's level left the memory out"),
        (State::Truncated, "the dump ends before the end of it"),
        (State::Unreadable, "what the dump holds of it is damaged"),
        (
            State::Partial,
            "some of it is on a swap area that cannot be read here",
        ),
        (State::Unsupported, "guests of this kind are not supported"),
    ];
    let most = reasons
        .into_iter()
        .max_by_key(|(state, _)| count(guests, |g| g.state == *state));
    most.map_or("", |(_, why)| why)
}

fn count(guests: &[GuestReport], which: impl Fn(&GuestReport) -> bool) -> usize {
    guests.iter().filter(|g| which(g)).count()
}

/// What `guests` takes for it.
fn selector(guest: &GuestReport) -> String {
    match &guest.name {
        Some(name)
            if name
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c)) =>
        {
            name.clone()
        }
        _ => guest.number.to_string(),
    }
}

fn plural(n: usize) -> &'static str {
    if n == 1 { "" } else { "s" }
}

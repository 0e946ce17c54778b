//! How much memory a capture kernel needs to go on with this host's guests where they lie
//! (docs/in-place.md).

use super::findings::Findings;
use crate::cli::table::bytes;
use crate::dataset::Dataset;
use crate::dump::{Dump, PAGE_SIZE};
use crate::extract::DeadHost;
use crate::extract::in_place::{self, Policy};
use crate::restore;
use std::path::Path;
use std::sync::Arc;

/// The kernel's own memory, as one sees it that lives.
const LIVE: &str = "/proc/kcore";

/// For the capture kernel, its modules and its user space: 160 MiB in the lab, and a distribution's
/// has more. Bytes.
const KERNEL: u64 = 256 << 20;

/// A reservation is a multiple of this. Bytes.
const STEP: u64 = 64 << 20;

const WHAT: &str = "in place";

/// What a guest that runs takes of a capture kernel's memory. Bytes.
#[derive(Clone, Debug)]
pub(in crate::cli) struct Need {
    pub name: String,
    pub copied: u64,
    pub untouched: u64,
}

/// Says what to reserve, of the guests that run now, and whether that much is.
pub(super) fn check(reserved: Option<u64>, findings: &mut Findings) {
    let dead = match open() {
        Ok(dead) => dead,
        Err(why) => {
            return findings.note(
                WHAT,
                format!(
                    "how much memory guests would need in the capture kernel is not known: {why}"
                ),
            );
        }
    };
    let pids: Vec<i32> = match dead.guests() {
        Ok(guests) => guests.iter().map(|guest| guest.pid).collect(),
        Err(error) => {
            return findings.note(WHAT, format!("the guests cannot be listed: {error}"));
        }
    };
    if pids.is_empty() {
        return findings.note(
            WHAT,
            "no guest runs now: what guests would need in the capture kernel shows when they do",
        );
    }
    let mut needs = Vec::new();
    for pid in pids {
        // It runs while it is read: what moved meanwhile may be right the next time.
        match need(&dead, pid).or_else(|_| need(&dead, pid)) {
            Ok((need, _)) => needs.push(need),
            Err(why) => findings.note(WHAT, format!("pid {pid} cannot be read now: {why}")),
        }
    }
    let image = super::plan::check(&needs, findings);
    report(&needs, image, reserved, findings);
}

/// The kernel that runs here.
pub(in crate::cli) fn open() -> Result<DeadHost, String> {
    let dump = Dump::open(Path::new(LIVE)).map_err(|e| e.to_string())?;
    DeadHost::of(Arc::new(dump)).map_err(|e| e.to_string())
}

/// What one guest takes, and what was read of it.
pub(in crate::cli) fn need(dead: &DeadHost, pid: i32) -> Result<(Need, Dataset), String> {
    let mut dataset = dead.dataset(&[pid]).map_err(|e| e.to_string())?;
    let chosen =
        in_place::choose(dead, &mut dataset, &Policy::default()).map_err(|e| e.to_string())?;
    let need = Need {
        name: crate::cli::bring_back::name_of(&dataset),
        copied: restore::in_place::copied(&dataset),
        untouched: chosen.untouched.saturating_mul(PAGE_SIZE),
    };
    Ok((need, dataset))
}

/// What to reserve for all of them, and for `more`. Bytes.
pub(in crate::cli) fn reservation(needs: &[Need], more: u64) -> u64 {
    let all = needs
        .iter()
        .map(|need| need.copied)
        .fold(KERNEL.saturating_add(more), u64::saturating_add);
    all.checked_next_multiple_of(STEP).unwrap_or(u64::MAX)
}

fn report(needs: &[Need], image: u64, reserved: Option<u64>, findings: &mut Findings) {
    if needs.is_empty() {
        return;
    }
    let mut each: Vec<String> = needs
        .iter()
        .map(|need| format!("{} {}", need.name, bytes(need.copied)))
        .collect();
    if image > 0 {
        each.push(format!("the initramfs {}", bytes(image)));
    }
    let (wanted, here) = (reservation(needs, image), reserved.unwrap_or(0));
    let line = format!("crashkernel={}M", wanted >> 20);
    let whose = format!(
        "{} for the capture kernel, {}",
        bytes(KERNEL),
        each.join(", ")
    );
    if here >= wanted {
        findings.good(WHAT, format!("{line} would hold these guests: {whose}"));
    } else {
        findings.note(
            WHAT,
            format!(
                "guests could go on in the capture kernel itself with {line}, and {} are reserved: {whose}",
                bytes(here)
            ),
        );
    }
    let untouched = needs
        .iter()
        .map(|n| n.untouched)
        .fold(0, u64::saturating_add);
    if untouched >= STEP {
        findings.note(
            WHAT,
            format!(
                "guests have not touched {} of their memory yet; what they touch in the capture \
                 kernel comes on top",
                bytes(untouched)
            ),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reservation_holds_all_and_is_round() {
        let need = |copied| Need {
            name: "g".into(),
            copied,
            untouched: 0,
        };
        assert_eq!(reservation(&[need(1)], 0), 320 << 20);
        assert_eq!(reservation(&[need(64 << 20), need(64 << 20)], 0), 384 << 20);
        assert_eq!(reservation(&[need(u64::MAX)], 1), u64::MAX);
    }
}

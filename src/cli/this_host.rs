//! Whether a guest finds here what it needs: its helpers, and what it uses of
//! the CPU and of KVM. Asked before anything is started.

use super::args::RestoreArgs;
use super::exit::{Exit, Failure};
use crate::dataset::{Dataset, Fidelity};
use crate::restore::{kvm, outside};
use std::collections::BTreeSet;

/// What is said of a guest that goes on although this host lacks something.
const OVERRIDDEN: &str = "overridden by --force; the guest may fail when it comes to it";

/// Refuses a guest that uses what this host lacks, unless forced. What is
/// overridden, and what the guest may only notice, comes back as lines of the
/// fidelity report.
///
/// # Errors
/// What is missing, all of it; or /dev/kvm cannot be asked.
pub fn refuse(dataset: &Dataset, options: &RestoreArgs) -> Result<Vec<Fidelity>, Failure> {
    let missing = outside::missing(dataset);
    if !missing.is_empty() && !options.force {
        return Err(Failure::new(
            Exit::Refused,
            missing.join("; "),
            "the guest's own shutdown and a start with its helpers is the way; --force restores \
             it without them, and it will see that device fail",
        ));
    }
    for what in &missing {
        eprintln!("warning: overridden by --force: {what}");
    }
    let problems = kvm::preflight(&dataset.vms).map_err(|e| {
        Failure::new(
            Exit::HostCannot,
            e,
            "load the kvm_amd or kvm_intel module, and run as root",
        )
    })?;
    let fatal: BTreeSet<&str> = problems
        .iter()
        .filter(|p| p.fatal)
        .map(|p| p.what.as_str())
        .collect();
    if !fatal.is_empty() && !options.force {
        return Err(Failure::new(
            Exit::HostCannot,
            join(&fatal),
            "restore it on a host that has this (`vmrestore extract` carries it there); --force \
             restores it all the same",
        ));
    }
    for what in &fatal {
        eprintln!("warning: overridden by --force: {what}");
    }
    let lacking = problems.into_iter().filter(|p| !p.said_when_set).map(|p| {
        let how = if p.fatal {
            OVERRIDDEN
        } else {
            "the guest may notice"
        };
        Fidelity::lost(p.subject, p.what, how)
    });
    let alone = missing
        .into_iter()
        .map(|what| Fidelity::lost("guest", what, OVERRIDDEN));
    Ok(lacking.chain(alone).collect())
}

/// In one line; what this host lacks, with its words said once.
pub fn join(texts: &BTreeSet<&str>) -> String {
    const USES: &str = "the guest uses ";
    const LACKS: &str = ", which this host's CPU or KVM lacks";
    let lacking: Vec<&str> = texts
        .iter()
        .filter_map(|t| t.strip_prefix(USES)?.strip_suffix(LACKS))
        .collect();
    let mut said: Vec<String> = Vec::new();
    if !lacking.is_empty() {
        said.push(format!("{USES}{}{LACKS}", lacking.join(", ")));
    }
    let others = texts
        .iter()
        .filter(|t| !(t.starts_with(USES) && t.ends_with(LACKS)));
    said.extend(others.map(|t| (*t).to_owned()));
    said.join("; ")
}

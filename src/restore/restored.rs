//! What is said of the processes that live again: who each is now, and what of it is not as it was.

use super::container::Container;
use super::pid_space::PidSpace;
use super::stub::Family;
use crate::dataset::{Dataset, Fidelity, NamespaceKind};

/// A process that lives again.
#[derive(Clone, Debug)]
pub struct Restored {
    /// PID on this host; 0 after a dry run.
    pub pid: i32,
    /// PID in the dead host.
    pub old_pid: i32,
    /// It lives in a PID namespace of its own, in which it has its old PID.
    pub own_pid_namespace: bool,
    /// What restoring added to the dataset's report.
    pub fidelity: Vec<Fidelity>,
}

/// Each process of a family, with the lines of the report that speak of it.
pub(super) fn describe(
    dataset: &Dataset,
    family: &Family<'_>,
    notes: &[Fidelity],
) -> Vec<Restored> {
    let own_pid_namespace = family.space.is_new();
    let mut restored: Vec<Restored> = family
        .stubs
        .iter()
        .map(|stub| Restored {
            pid: stub.pid,
            old_pid: stub.process.pid,
            own_pid_namespace,
            fidelity: Vec::new(),
        })
        .collect();
    for (process, stub) in restored.iter_mut().zip(&family.stubs) {
        let subject = format!("pid {}", process.old_pid);
        match family.space {
            PidSpace::Led if stub.process.ns_pid == 1 => {
                let how = format!(
                    "it is PID 1 of a new PID namespace, and {} outside of it",
                    process.pid
                );
                let note = Fidelity::exact(subject, "PID namespace", how);
                process.fidelity.push(note);
            }
            PidSpace::Own => process.fidelity.push(Fidelity::reconstructed(
                subject,
                "PID",
                format!(
                    "it, or one of its threads' IDs, was in use: outside of a PID namespace of \
                     its own it is {}",
                    process.pid
                ),
            )),
            PidSpace::Host | PidSpace::Container | PidSpace::Led => {}
        }
    }
    distribute(dataset, notes, &mut restored);
    restored
}

/// Gives each process the lines that speak of it.
pub(super) fn distribute(dataset: &Dataset, notes: &[Fidelity], restored: &mut [Restored]) {
    for note in notes {
        let number = note
            .subject
            .split_ascii_whitespace()
            .nth(1)
            .and_then(|n| n.parse::<i32>().ok());
        let owner = dataset
            .processes
            .iter()
            .position(|p| Some(p.pid) == number || p.threads.iter().any(|t| Some(t.tid) == number));
        if let Some(process) = restored.get_mut(owner.unwrap_or(0)) {
            process.fidelity.push(note.clone());
        }
    }
}

/// Says which namespaces of their own they no longer have.
pub(super) fn namespaces_left(
    dataset: &Dataset,
    family: &Family<'_>,
    container: Option<&Container>,
    notes: &mut Vec<Fidelity>,
) {
    for process in &dataset.processes {
        for own in &process.namespaces.own {
            // Its clocks go on in a time namespace, and PIDs that do not fit get one too.
            let again = matches!(own.kind, NamespaceKind::Time | NamespaceKind::Pid)
                || own.kind == NamespaceKind::Mount && family.own_mounts;
            if !again && !container.is_some_and(|c| c.enters(own.kind)) {
                notes.push(Fidelity::reconstructed(
                    format!("pid {}", process.pid),
                    format!("{} namespace", own.kind),
                    "it had one of its own; it runs in this host's",
                ));
            }
        }
    }
}

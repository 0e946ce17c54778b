//! Who is to be made: a node for each process and each zombie, below its parent.

use super::{Node, Role, malformed};
use crate::dataset::{Dataset, ObjectId, Process, Zombie};
use crate::restore::{RestoreError, pid_space};
use std::collections::{HashMap, HashSet};

/// Processes in the order of the dataset, and behind them the zombies.
///
/// # Errors
/// Ties that nobody can have had, and memory that several share.
pub(super) fn of(dataset: &Dataset) -> Result<Vec<Node>, RestoreError> {
    let first = pid_space::first_process(dataset).map(|p| p.pid);
    let of_process = |(index, p): (usize, &Process)| Node {
        role: Role::Process(index),
        pid: p.pid,
        ns_pid: p.ns_pid,
        parent: None,
        pgid: p.pgid,
        sid: p.sid,
        exit_signal: p.kin.exit_signal,
        first: first == Some(p.pid),
        files: p.kin.files,
        fs: p.kin.fs,
    };
    let of_zombie = |(index, z): (usize, &Zombie)| Node {
        role: Role::Zombie(index),
        pid: z.pid,
        ns_pid: z.ns_pid,
        parent: None,
        pgid: z.pgid,
        sid: z.sid,
        exit_signal: z.exit_signal,
        first: false,
        files: ObjectId::default(),
        fs: ObjectId::default(),
    };
    let mut nodes: Vec<Node> = dataset
        .processes
        .iter()
        .enumerate()
        .map(of_process)
        .collect();
    nodes.extend(dataset.zombies.iter().enumerate().map(of_zombie));
    let mut at = HashMap::new();
    let mut ids = HashSet::new();
    for (index, node) in nodes.iter().enumerate() {
        if at.insert(node.pid, index).is_some() || !ids.insert(node.ns_pid) {
            return Err(malformed(
                node.pid,
                "its PID",
                "two processes have it (of two PID namespaces?)",
            ));
        }
    }
    refuse_shared_memory(dataset)?;
    let parents = dataset.processes.iter().map(|p| p.ppid);
    let parents: Vec<i32> = parents
        .chain(dataset.zombies.iter().map(|z| z.ppid))
        .collect();
    for (node, ppid) in nodes.iter_mut().zip(parents) {
        node.parent = at.get(&ppid).copied().filter(|_| ppid != node.pid);
    }
    for start in 0..nodes.len() {
        // Parents that go in a circle have no first one.
        let mut at = start;
        for _ in 0..nodes.len() {
            match nodes.get(at).and_then(|n| n.parent) {
                Some(parent) => at = parent,
                None => break,
            }
        }
        if let Some(node) = nodes.get(at)
            && node.parent.is_some()
        {
            return Err(malformed(node.pid, "its parent", "it descends from itself"));
        }
    }
    let of_zombie = |n: &Node| n.parent.and_then(|p| nodes.get(p)).map(|p| p.role);
    if let Some(node) = nodes
        .iter()
        .find(|n| matches!(of_zombie(n), Some(Role::Zombie(_))))
    {
        return Err(malformed(node.pid, "its parent", "it has ended"));
    }
    Ok(nodes)
}

/// Two processes in one address space: a child of vfork, which is about to
/// execute something, does with a copy of it; others would not.
fn refuse_shared_memory(dataset: &Dataset) -> Result<(), RestoreError> {
    let mut owners: HashMap<ObjectId, &Process> = HashMap::new();
    for process in &dataset.processes {
        if process.kin.mm == ObjectId::default() {
            continue;
        }
        let earlier = owners.entry(process.kin.mm).or_insert(process);
        if earlier.pid != process.pid && !earlier.kin.vforked && !process.kin.vforked {
            return Err(RestoreError::Refused {
                pid: process.pid,
                what: "its address space".into(),
                why: format!(
                    "it is one with that of pid {} (clone with CLONE_VM)",
                    earlier.pid
                ),
                hint: "a process and its threads come back; processes that share all memory do not",
            });
        }
    }
    Ok(())
}

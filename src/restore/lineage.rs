//! In which order processes are made, and by whom, so that each is the child of
//! its parent, in its session and its process group.
//!
//! A process cannot be put into a session: it is born in its maker's, or makes
//! one of its own. So each is made
//!
//! - by its parent, while that is in the right session (a parent that made a
//!   session of its own later makes such children before it does that);
//! - or by a sibling that is in the right session, with CLONE_PARENT;
//! - or by a child of a member of the session, which ends at once: then its
//!   nearest ancestor that adopts orphans, its parent to be, inherits it.
//!
//! Where a session's or a group's leader ended before the crash, or is not
//! restored, a *helper* has its PID for as long as the others are made.
//!
//! PID 1 of a PID namespace comes before all others of it. The kernel lets it
//! have no siblings by CLONE_PARENT, and nobody inherits past it.

mod leaders;
mod nodes;
mod order;

use super::RestoreError;
use crate::dataset::{Dataset, ObjectId};
use leaders::{absent, add_helper, lead};
use std::collections::HashSet;

/// Who a node becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The process with this index in the dataset.
    Process(usize),
    /// The zombie with this index.
    Zombie(usize),
    /// Nobody: it lends its PID to a session or a group, and ends.
    Helper,
}

/// One task to make.
#[derive(Clone, Debug)]
pub struct Node {
    pub role: Role,
    /// PID in the dead host's initial PID namespace.
    pub pid: i32,
    /// PID to ask for.
    pub ns_pid: i32,
    /// Index of its parent's node; none: a root.
    pub parent: Option<usize>,
    pub pgid: i32,
    pub sid: i32,
    pub exit_signal: i32,
    /// It is PID 1 of the PID namespace that they come into.
    pub first: bool,
    /// Descriptor table and directories that others may share.
    files: ObjectId,
    fs: ObjectId,
}

impl Node {
    /// It leads a session.
    pub fn leads(&self) -> bool {
        self.sid == self.pid
    }
}

/// How a node comes to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Maker {
    /// Its parent, or for a root whoever makes the roots.
    Parent,
    /// This node, by CLONE_PARENT.
    Sibling(usize),
    /// A child of this node, which ends; the parent adopts it.
    Adopted(usize),
}

/// One step of the making.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Makes a node.
    Make {
        node: usize,
        maker: Maker,
        /// With its maker's descriptor table, or directories.
        share_files: bool,
        share_fs: bool,
        /// It is not in the session that it was in.
        astray: bool,
    },
    /// A node makes a session of its own.
    LeadSession(usize),
}

/// What is to be done.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    pub nodes: Vec<Node>,
    pub steps: Vec<Step>,
}

/// Plans the making of a dataset's processes and zombies. `no_helper`: PIDs
/// that a helper cannot have here; `none_at_all`: no PID but the dataset's is known.
///
/// # Errors
/// Ties that cannot be made again.
pub fn plan(
    dataset: &Dataset,
    no_helper: &HashSet<i32>,
    none_at_all: bool,
) -> Result<Plan, RestoreError> {
    let mut nodes = nodes::of(dataset)?;
    let known: HashSet<i32> = nodes.iter().map(|n| n.pid).collect();
    let may_help = |pid: i32| pid > 0 && !none_at_all && !no_helper.contains(&pid);
    for sid in absent(&nodes, &known, |n| n.sid) {
        let of_it = |n: &Node| n.sid == sid;
        let first = nodes.iter().position(|n| n.first && of_it(n));
        let Some(first) = first.or_else(|| nodes.iter().position(of_it)) else {
            continue;
        };
        if may_help(sid) {
            add_helper(&mut nodes, first, sid, sid);
        } else {
            lead(&mut nodes, first, sid);
        }
    }
    let known: HashSet<i32> = nodes.iter().map(|n| n.pid).collect();
    for pgid in absent(&nodes, &known, |n| n.pgid) {
        let Some(first) = nodes.iter().position(|n| n.pgid == pgid) else {
            continue;
        };
        if may_help(pgid) {
            let sid = nodes.get(first).map_or(0, |n| n.sid);
            add_helper(&mut nodes, first, pgid, sid);
        } else {
            let leader = nodes.get(first).map_or(0, |n| n.pid);
            for node in nodes.iter_mut().filter(|n| n.pgid == pgid) {
                node.pgid = leader;
            }
        }
    }
    let steps = order::order(&nodes)?;
    Ok(Plan { nodes, steps })
}

fn malformed(pid: i32, what: &str, why: impl Into<String>) -> RestoreError {
    RestoreError::Malformed {
        pid,
        what: what.into(),
        why: why.into(),
    }
}

#[cfg(test)]
mod tests;

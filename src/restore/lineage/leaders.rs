//! Sessions and process groups whose leader is not among the nodes: a helper has its PID for a
//! while, or somebody else leads.

use super::{Node, Role};
use crate::dataset::ObjectId;
use std::collections::HashSet;

/// Leaders that nobody is, each once.
pub(super) fn absent(nodes: &[Node], known: &HashSet<i32>, of: impl Fn(&Node) -> i32) -> Vec<i32> {
    let mut found = Vec::new();
    for node in nodes {
        let id = of(node);
        if !known.contains(&id) && !found.contains(&id) {
            found.push(id);
        }
    }
    found
}

/// Adds a helper beside the topmost node of those that need it, of which
/// `first` is one.
pub(super) fn add_helper(nodes: &mut Vec<Node>, first: usize, pid: i32, sid: i32) {
    let parent = nodes.get(first).and_then(|n| n.parent);
    nodes.push(Node {
        role: Role::Helper,
        pid,
        ns_pid: pid,
        parent,
        pgid: pid,
        sid,
        exit_signal: libc::SIGCHLD,
        first: false,
        files: ObjectId::default(),
        fs: ObjectId::default(),
    });
}

/// The first node of a session without a leader leads it from now on.
pub(super) fn lead(nodes: &mut [Node], first: usize, sid: i32) {
    let Some(leader) = nodes.get_mut(first) else {
        return;
    };
    let pid = leader.pid;
    leader.pgid = pid;
    for node in nodes.iter_mut().filter(|n| n.sid == sid) {
        node.sid = pid;
        if node.pgid == sid {
            node.pgid = pid;
        }
    }
}

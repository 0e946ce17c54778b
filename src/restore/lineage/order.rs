//! The order in which nodes are made, and by whom.

use super::{Maker, Node, Role, Step, malformed};
use crate::restore::RestoreError;

/// The making as far as it is planned.
struct Order<'n> {
    nodes: &'n [Node],
    /// The session that each made node is in.
    session: Vec<Option<i32>>,
    led: Vec<bool>,
    steps: Vec<Step>,
}

/// The steps by which all nodes are made.
///
/// # Errors
/// Ties that cannot be made again.
pub(super) fn order(nodes: &[Node]) -> Result<Vec<Step>, RestoreError> {
    let mut order = Order {
        nodes,
        session: vec![None; nodes.len()],
        led: vec![false; nodes.len()],
        steps: Vec::new(),
    };
    let mut left: Vec<usize> = (0..nodes.len()).collect();
    if let Some(first) = nodes.iter().position(|n| n.first) {
        left.remove(first);
        order.make(first, Maker::Parent, false)?;
    }
    while !left.is_empty() {
        let found = left
            .iter()
            .enumerate()
            .find_map(|(at, node)| Some((at, *node, order.maker(*node)?)));
        if let Some((at, node, maker)) = found {
            left.remove(at);
            order.make(node, maker, false)?;
            continue;
        }
        // No more can be made as things are: somebody leads a session.
        if let Some(leader) = order.next_leader() {
            order.lead(leader);
            continue;
        }
        let found = left
            .iter()
            .enumerate()
            .find_map(|(at, node)| Some((at, *node, order.adoption(*node)?)));
        if let Some((at, node, maker)) = found {
            left.remove(at);
            order.make(node, maker, false)?;
            continue;
        }
        // Its session cannot be had: it stays in its parent's.
        let Some(at) = left.iter().position(|node| order.parent_is_made(*node)) else {
            let pid = left
                .first()
                .and_then(|n| nodes.get(*n))
                .map_or(0, |n| n.pid);
            return Err(malformed(pid, "its parent", "it comes after its child"));
        };
        let node = left.remove(at);
        order.make(node, Maker::Parent, true)?;
    }
    while let Some(leader) = order.next_leader() {
        order.lead(leader);
    }
    Ok(order.steps)
}

impl Order<'_> {
    fn parent_is_made(&self, node: usize) -> bool {
        match self.nodes.get(node).map(|n| n.parent) {
            Some(Some(parent)) => self.is_made(parent),
            Some(None) => true,
            None => false,
        }
    }

    fn is_made(&self, node: usize) -> bool {
        self.session.get(node).copied().flatten().is_some()
    }

    fn session_of(&self, node: usize) -> Option<i32> {
        self.session.get(node).copied().flatten()
    }

    /// Whether two nodes have one descriptor table.
    fn share_files(&self, a: usize, b: usize) -> bool {
        let of = |n: usize| self.nodes.get(n).map_or(0, |n| n.files.0);
        of(a) != 0 && of(a) == of(b)
    }

    /// A made node that a new one shares its descriptor table with.
    fn partner(&self, node: usize) -> Option<usize> {
        (0..self.nodes.len())
            .find(|other| *other != node && self.is_made(*other) && self.share_files(*other, node))
    }

    /// By whom a node can be made right now, in its session, without adoption.
    fn maker(&self, node: usize) -> Option<Maker> {
        let n = self.nodes.get(node)?;
        if !self.parent_is_made(node) {
            return None;
        }
        // The session that it must be born in; a leader may be born anywhere,
        // unless it had children before it became one.
        let wanted = if n.leads() {
            self.before_leading(node)
        } else {
            Some(n.sid)
        };
        let fits = |maker: usize| wanted.is_none() || self.session_of(maker) == wanted;
        let partner = self.partner(node);
        if let Some(parent) = n.parent
            && fits(parent)
            && partner.is_none_or(|p| p == parent || self.share_files(p, parent))
        {
            return Some(Maker::Parent);
        }
        if n.parent.is_none() && wanted.is_none() && partner.is_none() {
            return Some(Maker::Parent);
        }
        let sibling = |other: &usize| {
            self.is_made(*other)
                && self
                    .nodes
                    .get(*other)
                    .is_some_and(|o| o.parent == n.parent && !o.first)
                && fits(*other)
                && partner.is_none_or(|p| self.share_files(p, *other))
        };
        (0..self.nodes.len())
            .find(sibling)
            .map(Maker::Sibling)
            // A leader that must be born in a session that nobody has.
            .or_else(|| {
                let nobody = n.leads() && partner.is_none();
                let had = wanted.is_some_and(|sid| self.nodes.iter().any(|o| o.pid == sid));
                (nobody && !had).then_some(Maker::Parent)
            })
    }

    /// The session in which a leader had children before it led its own.
    fn before_leading(&self, leader: usize) -> Option<i32> {
        let own = self.nodes.get(leader)?.sid;
        self.nodes
            .iter()
            .find(|n| n.parent == Some(leader) && !n.leads() && n.sid != own)
            .map(|n| n.sid)
            // Only where it can have been born there: somebody else is in it.
            .filter(|sid| {
                self.nodes
                    .iter()
                    .any(|n| n.sid == *sid && n.parent != Some(leader))
            })
    }

    /// A member of its session below its parent, by whose child it is left to it.
    fn adoption(&self, node: usize) -> Option<Maker> {
        let n = self.nodes.get(node)?;
        if !self.parent_is_made(node) || n.leads() || self.partner(node).is_some() {
            return None;
        }
        // From within a PID namespace nobody is left to who is outside of it.
        if n.parent.is_none() && self.nodes.iter().any(|n| n.first) {
            return None;
        }
        // Who has lost all its own is left to PID 1, wherever it was.
        let to_first = n
            .parent
            .and_then(|parent| self.nodes.get(parent))
            .is_some_and(|parent| parent.first);
        let member = |other: &usize| {
            self.session_of(*other) == Some(n.sid)
                && matches!(self.nodes.get(*other).map(|o| o.role), Some(r) if !matches!(r, Role::Zombie(_)))
                && (to_first || self.descends(*other, n.parent))
        };
        (0..self.nodes.len()).find(member).map(Maker::Adopted)
    }

    /// Whether a node is below another (all are below whoever makes the roots).
    fn descends(&self, node: usize, from: Option<usize>) -> bool {
        let mut at = Some(node);
        for _ in 0..=self.nodes.len() {
            if at == from {
                return true;
            }
            at = match at {
                Some(at) => self.nodes.get(at).and_then(|n| n.parent),
                None => return false,
            };
        }
        false
    }

    /// A made leader that leads no session yet. One whose children are still
    /// to be born in the session that it is in comes last.
    fn next_leader(&self) -> Option<usize> {
        let waiting = |leader: &usize| {
            self.is_made(*leader)
                && self.nodes.get(*leader).is_some_and(Node::leads)
                && self.led.get(*leader) == Some(&false)
        };
        let needed = |leader: &usize| {
            self.nodes.iter().enumerate().any(|(at, n)| {
                n.parent == Some(*leader)
                    && !n.leads()
                    && !self.is_made(at)
                    && Some(n.sid) == self.session_of(*leader)
            })
        };
        (0..self.nodes.len())
            .filter(waiting)
            .min_by_key(|leader| needed(leader))
    }

    fn lead(&mut self, leader: usize) {
        if let (Some(node), Some(session), Some(led)) = (
            self.nodes.get(leader),
            self.session.get_mut(leader),
            self.led.get_mut(leader),
        ) {
            *session = Some(node.sid);
            *led = true;
            self.steps.push(Step::LeadSession(leader));
        }
    }

    fn make(&mut self, node: usize, maker: Maker, astray: bool) -> Result<(), RestoreError> {
        let Some(n) = self.nodes.get(node) else {
            return Ok(());
        };
        let by = match maker {
            Maker::Parent => n.parent,
            Maker::Sibling(by) => Some(by),
            Maker::Adopted(_) => None,
        };
        let share_files = by.is_some_and(|by| self.share_files(by, node));
        if !share_files && self.partner(node).is_some() {
            return Err(RestoreError::Refused {
                pid: n.pid,
                what: "its descriptor table".into(),
                why: "it shares it with a process that is neither its parent nor its sibling"
                    .into(),
                hint: "restore it alone, with a table of its own",
            });
        }
        let share_fs = by
            .and_then(|by| self.nodes.get(by))
            .is_some_and(|by| n.fs.0 != 0 && by.fs == n.fs);
        let session = match by {
            Some(by) => self.session_of(by),
            None => match maker {
                Maker::Adopted(_) => Some(n.sid),
                // Whoever makes the roots is in none of theirs.
                _ => Some(0),
            },
        };
        if let Some(slot) = self.session.get_mut(node) {
            *slot = session;
        }
        self.steps.push(Step::Make {
            node,
            maker,
            share_files,
            share_fs,
            // A leader leaves the session that it was born in.
            astray: astray && !n.leads(),
        });
        Ok(())
    }
}

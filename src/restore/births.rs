//! The making of all stubs, by the plan of [`super::lineage`].

use super::container::Container;
use super::error::Context;
use super::inject::Tracee;
use super::lineage::{self, Maker, Plan, Role, Step};
use super::pid_space::PidSpace;
use super::stub::{Birth, Family, Kind, Stub, add_thread, reap, spawn};
use super::terminals::{self, Masters};
use super::{RestoreError, calls, procfs};
use crate::dataset::{Dataset, Fidelity};
use std::collections::HashSet;

/// PIDs tried for a process that ends at once.
const TRIES: i32 = 64;

impl<'a> Family<'a> {
    /// Makes a stub with all its threads for every process, and a task for
    /// every zombie.
    ///
    /// # Errors
    /// [`RestoreError::PidTaken`] without `own_pids`, when an ID is not free.
    pub fn make(
        dataset: &'a Dataset,
        own_pids: bool,
        container: Option<&Container>,
    ) -> Result<Self, RestoreError> {
        // Numbers in a PID namespace are known of those only who are in it.
        let nested = dataset.processes.iter().any(|p| p.pid != p.ns_pid);
        let mut taken = HashSet::new();
        loop {
            let plan = lineage::plan(dataset, &taken, nested)?;
            match Self::by(dataset, &plan, own_pids, container) {
                Err(RestoreError::PidTaken { pid })
                    if plan
                        .nodes
                        .iter()
                        .any(|n| n.role == Role::Helper && n.pid == pid)
                        && taken.insert(pid) => {}
                other => return other,
            }
        }
    }

    fn by(
        dataset: &'a Dataset,
        plan: &Plan,
        own_pids: bool,
        container: Option<&Container>,
    ) -> Result<Self, RestoreError> {
        let mut family = Self::new(dataset, own_pids, container)?;
        family.masters = Masters::open(dataset, family.root_maker())?;
        family.cradle.resize_with(plan.nodes.len(), || None);
        let mut shares = vec![(false, false); plan.nodes.len()];
        for step in &plan.steps {
            match *step {
                Step::Make {
                    node,
                    maker,
                    share_files,
                    share_fs,
                    astray,
                } => {
                    family.make_node(plan, node, maker, (share_files, share_fs))?;
                    if let Some(shares) = shares.get_mut(node) {
                        *shares = (share_files, share_fs);
                    }
                    if astray {
                        family.note(plan, node, "session", "it is in its parent's");
                    }
                }
                Step::LeadSession(node) => family.lead(dataset, plan, node)?,
            }
        }
        family.join_groups(plan)?;
        family.set_foreground(dataset, plan);
        family.note_sessions(dataset, plan);
        family.settle(dataset, plan, &shares)?;
        Ok(family)
    }

    /// Who leads another session than it was in: in a PID namespace of theirs it
    /// cannot be had whose leader is not restored.
    fn note_sessions(&mut self, dataset: &'a Dataset, plan: &Plan) {
        if !matches!(self.space, PidSpace::Container | PidSpace::Led) {
            return;
        }
        for (at, node) in plan.nodes.iter().enumerate() {
            if let Role::Process(index) = node.role
                && let Some(process) = dataset.processes.get(index)
                && process.sid != node.sid
            {
                let how = format!(
                    "that of pid {}, which is not restored: it is in a new one, of pid {}",
                    process.sid, node.sid
                );
                self.note(plan, at, "session", &how);
            }
        }
    }

    fn note(&mut self, plan: &Plan, node: usize, what: &str, how: &str) {
        let pid = plan.nodes.get(node).map_or(0, |n| n.pid);
        let note = Fidelity::reconstructed(format!("pid {pid}"), what, how);
        self.notes.push(note);
    }

    /// The task of a node that was made.
    fn born(&mut self, node: usize) -> Result<&mut Tracee, RestoreError> {
        self.cradle
            .get_mut(node)
            .and_then(Option::as_mut)
            .ok_or_else(|| RestoreError::Lost {
                pid: 0,
                how: format!("is not there (node {node})"),
            })
    }

    /// A made node, or whoever makes the roots.
    fn maker_of(&mut self, node: Option<usize>) -> Result<&mut Tracee, RestoreError> {
        match node {
            Some(node) => self.born(node),
            None => Ok(self.root_maker()),
        }
    }

    fn make_node(
        &mut self,
        plan: &Plan,
        node: usize,
        maker: Maker,
        (share_files, share_fs): (bool, bool),
    ) -> Result<(), RestoreError> {
        let Some(n) = plan.nodes.get(node) else {
            return Ok(());
        };
        let birth = Birth {
            exit_signal: n.exit_signal,
            sibling: false,
            share_files,
            share_fs,
        };
        let id = Some(n.ns_pid);
        let born = match maker {
            Maker::Parent => spawn(self.maker_of(n.parent)?, Kind::Process(birth), id)?,
            Maker::Sibling(by) => {
                let kind = Kind::Process(Birth {
                    sibling: true,
                    ..birth
                });
                let born = spawn(self.born(by)?, kind, id)?;
                let inherited = plan.nodes.get(by).map_or(0, |n| n.exit_signal);
                if inherited != n.exit_signal && n.role != Role::Helper {
                    let how = format!("its parent hears of it by signal {inherited}");
                    self.note(plan, node, "exit signal", &how);
                }
                born
            }
            Maker::Adopted(by) => self.orphan(plan, node, by, birth)?,
        };
        let born_first = n.first.then_some(born.tid);
        if let Some(slot) = self.cradle.get_mut(node) {
            *slot = Some(born);
        }
        if born_first.is_some() {
            self.first = born_first;
            if self.own_mounts {
                let mounted = procfs::mount(self.born(node)?, n.pid)?;
                self.notes.extend(mounted);
            }
        }
        Ok(())
    }

    /// Makes a node as a grandchild of another, whose parent ends at once, so
    /// that the node's parent to be inherits it.
    fn orphan(
        &mut self,
        plan: &Plan,
        node: usize,
        by: usize,
        birth: Birth,
    ) -> Result<Tracee, RestoreError> {
        let Some(n) = plan.nodes.get(node) else {
            return self.go_between(plan, by);
        };
        let adopts = |family: &mut Self, yes: u64| -> Result<(), RestoreError> {
            let sys = family.maker_of(n.parent)?;
            calls::prctl(sys, libc::PR_SET_CHILD_SUBREAPER, [yes])
                .during(n.pid, || "prctl(PR_SET_CHILD_SUBREAPER)".into())
                .map(drop)
        };
        adopts(self, 1)?;
        let mut between = self.go_between(plan, by)?;
        let born = spawn(&mut between, Kind::Process(birth), Some(n.ns_pid));
        reap(&[between.tid]);
        let born = born?;
        if let Err(e) = adopts(self, 0) {
            reap(&[born.tid]);
            return Err(e);
        }
        Ok(born)
    }

    /// A child of a node, with a PID that nobody else is to have.
    fn go_between(&mut self, plan: &Plan, by: usize) -> Result<Tracee, RestoreError> {
        let reserved: HashSet<i32> = plan.nodes.iter().map(|n| n.ns_pid).collect();
        let highest = reserved.iter().copied().max().unwrap_or(0);
        let mut last = RestoreError::PidTaken { pid: highest };
        // Below, should the highest possible one be among them.
        let above = (1..=TRIES).map(|i| highest.saturating_add(i));
        for id in above.chain(300..300 + TRIES) {
            if reserved.contains(&id) {
                continue;
            }
            match spawn(self.born(by)?, Kind::Process(Birth::default()), Some(id)) {
                Err(e @ (RestoreError::PidTaken { .. } | RestoreError::Unsupported { .. })) => {
                    last = e;
                }
                other => return other,
            }
        }
        Err(last)
    }

    /// A node makes its session, and takes its terminal before it has children.
    fn lead(&mut self, dataset: &'a Dataset, plan: &Plan, node: usize) -> Result<(), RestoreError> {
        let Some(n) = plan.nodes.get(node) else {
            return Ok(());
        };
        calls::plain::<0>(self.born(node)?, libc::SYS_setsid, [])
            .during(n.pid, || "setsid".into())?;
        let process = match n.role {
            Role::Process(index) => dataset.processes.get(index),
            _ => None,
        };
        if let Some(process) = process
            && let Some(terminal) = process.kin.terminal
            && let Some(Some(leader)) = self.cradle.get_mut(node)
        {
            let (masters, notes) = (&self.masters, &mut self.notes);
            terminals::take(dataset, process, terminal, masters, leader, notes);
        }
        Ok(())
    }

    /// Process groups: first their leaders, then the others.
    fn join_groups(&mut self, plan: &Plan) -> Result<(), RestoreError> {
        let own = |n: &lineage::Node| n.pgid == n.pid;
        for (node, n) in plan.nodes.iter().enumerate().filter(|(_, n)| own(n)) {
            if !n.leads() {
                calls::plain(self.born(node)?, libc::SYS_setpgid, [0, 0])
                    .during(n.pid, || "setpgid".into())?;
            }
        }
        for (node, n) in plan.nodes.iter().enumerate().filter(|(_, n)| !own(n)) {
            let leader = plan.nodes.iter().find(|l| l.pid == n.pgid);
            let group = i64::from(leader.map_or(n.pgid, |l| l.ns_pid)).cast_unsigned();
            let joined = calls::plain(self.born(node)?, libc::SYS_setpgid, [0, group]);
            if let Err(errno) = joined {
                let how = format!("{}, by setpgid: {errno}", n.pgid);
                self.note(plan, node, "process group", &how);
            }
        }
        Ok(())
    }

    fn set_foreground(&mut self, dataset: &'a Dataset, plan: &Plan) {
        for (index, process) in dataset.processes.iter().enumerate() {
            let Some(terminal) = process.kin.terminal else {
                continue;
            };
            let group = plan.nodes.iter().find(|n| n.pid == terminal.foreground);
            let node = plan
                .nodes
                .iter()
                .position(|n| n.role == Role::Process(index));
            if let Some(group) = group
                && let Some(node) = node
                && let Ok(leader) = self.born(node)
                && let Err(errno) = terminals::set_foreground(leader, group.ns_pid)
                // Without a terminal there is no foreground: that was said.
                && errno.0 != libc::ENXIO
            {
                let how = format!("{} is not in its foreground: {errno}", group.pid);
                self.note(plan, node, "controlling terminal", &how);
            }
        }
    }

    /// Helpers end, and the others get their threads.
    fn settle(
        &mut self,
        dataset: &'a Dataset,
        plan: &Plan,
        shares: &[(bool, bool)],
    ) -> Result<(), RestoreError> {
        let mut helpers = Vec::new();
        for (node, n) in plan.nodes.iter().enumerate() {
            let Some(tracee) = self.cradle.get_mut(node).and_then(Option::take) else {
                continue;
            };
            let (shares_files, shares_fs) = shares.get(node).copied().unwrap_or_default();
            match n.role {
                Role::Helper => helpers.push(tracee.tid),
                Role::Zombie(index) => match dataset.zombies.get(index) {
                    Some(zombie) => self.zombies.push((zombie, tracee)),
                    None => helpers.push(tracee.tid),
                },
                // Nodes of processes are in the order of the dataset.
                Role::Process(index) => match dataset.processes.get(index) {
                    Some(process) => self.stubs.push(Stub {
                        process,
                        pid: tracee.tid,
                        threads: vec![tracee],
                        helpers: Vec::new(),
                        shares_files,
                        shares_fs,
                    }),
                    None => helpers.push(tracee.tid),
                },
            }
        }
        reap(&helpers);
        let masters = std::mem::take(&mut self.masters);
        let closed = masters.close(self.root_maker());
        self.masters = masters;
        closed?;
        for stub in &mut self.stubs {
            for thread in stub.process.threads.iter().skip(1) {
                let born = add_thread(stub.leader()?, thread)?;
                stub.threads.push(born);
            }
        }
        Ok(())
    }
}

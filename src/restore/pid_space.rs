//! In which PID namespace a set has its PIDs.

use super::container::Container;
use crate::dataset::{Dataset, NamespaceKind, Process};

/// A PID namespace on this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PidSpace {
    /// This host's.
    Host,
    /// A new one, whose PID 1 does nothing but reap.
    Own,
    /// A new one, whose PID 1 is of the set, as it was.
    Led,
    /// That of a container that runs here.
    Container,
}

/// The process of a set that was the first of its PID namespace: a container's init.
pub fn first_process(dataset: &Dataset) -> Option<&Process> {
    let inner = |p: &&Process| p.ns_pid == 1 && p.pid != 1;
    dataset.processes.iter().find(inner)
}

impl PidSpace {
    /// Where a set goes. `own_pids`: it cannot have its PIDs on this host.
    pub fn of(dataset: &Dataset, own_pids: bool, container: Option<&Container>) -> Self {
        if first_process(dataset).is_some() {
            Self::Led
        } else if container.is_some_and(|c| c.enters(NamespaceKind::Pid)) {
            Self::Container
        } else if own_pids {
            Self::Own
        } else {
            Self::Host
        }
    }

    /// Who is outside of the set has no PIDs in it that are known here.
    pub fn is_new(self) -> bool {
        matches!(self, Self::Own | Self::Led)
    }
}

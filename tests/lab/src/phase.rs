//! What a guest is in the middle of when its host dies.

use std::time::Duration;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::agent::Agent;
use crate::guest::Guest;
use crate::scenario::Scenario;

/// A guest's phase at the crash.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// It says its lines.
    #[default]
    Running,
    /// Its VMM has just been started: it is in its firmware, or boots.
    Booting,
    /// It has run, and has just been reset: it boots for the second time.
    Resetting,
    /// Its VMM has been told to stop it.
    Paused,
}

impl Phase {
    /// It starts when all others have run for a while.
    #[must_use]
    pub const fn starts_late(self) -> bool {
        matches!(self, Self::Booting)
    }
}

/// Waits until a VMM that has just been started has made its VM: before that
/// there is no guest.
pub(crate) fn wait_for_vm(agent: &mut Agent, guest: &Guest) -> Result<()> {
    let wait = format!(
        "for i in $(seq 200); do ls -l /proc/{}/fd 2>/dev/null | grep -q kvm-vcpu && exit 0; \
         sleep 0.05; done; exit 1",
        guest.pid
    );
    agent
        .run(&wait, Duration::from_secs(60))?
        .success("wait for the VM")
        .map(drop)
}

/// After the warm-up, before the random wait: resets those that are to boot
/// again. (Those that are to boot for the first time are started then too.)
pub(crate) fn enter(agent: &mut Agent, scenario: &Scenario) -> Result<()> {
    tell(agent, scenario, Phase::Resetting, "system_reset")
}

/// Right before the crash: stops those that are to be found so.
pub(crate) fn last_moment(agent: &mut Agent, scenario: &Scenario) -> Result<()> {
    tell(agent, scenario, Phase::Paused, "stop")
}

fn tell(agent: &mut Agent, scenario: &Scenario, phase: Phase, command: &str) -> Result<()> {
    for Guest { name, .. } in scenario.guests.iter().filter(|g| g.phase == phase) {
        let line = format!("qmp /run/{name}.qmp {command}");
        agent.run(&line, Duration::from_secs(30))?.success(&line)?;
    }
    Ok(())
}

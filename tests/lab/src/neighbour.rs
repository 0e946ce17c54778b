//! A second host on the network of the first, to which guests can be moved: the same machine and
//! root, and for each guest that is expected a VMM that waits for it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::guest::Guest;
use crate::network_card;
use crate::reboot::{Aftermath, Luggage, Rebooted};
use crate::scenario::{Death, Scenario};
use crate::{Hardware, Lab};

/// The neighbour's address.
pub const ADDRESS: &str = "10.77.0.3";
/// That of the host beside it.
pub const HOST: &str = "10.77.0.2";
const MINUTE: Duration = Duration::from_secs(60);

/// The second host. Its wire is gone with it.
pub struct Neighbour {
    /// It as a host of the lab. What a guest had printed before is not known here.
    pub host: Rebooted,
    wire: Wire,
}

struct Wire(PathBuf);

impl Drop for Wire {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

impl Neighbour {
    /// Boots it, and starts a VMM for each of these guests, with `-incoming defer`.
    pub fn start(lab: &Lab, guests: &[Guest]) -> Result<Self> {
        // Short: the name of a UNIX socket has 107 bytes at most.
        let wire = std::env::temp_dir().join(format!("vmrestore-wire-{}", std::process::id()));
        let _ = std::fs::remove_file(&wire);
        let wire = Wire(wire);
        let scenario = Scenario {
            name: "neighbour".into(),
            hardware: Hardware {
                cpus: 1,
                network: Some(wire.0.clone()),
                listens: true,
                ..Hardware::default()
            },
            guests: guests.iter().map(expected).collect(),
            // Nobody crashes it, so it has no capture kernel.
            death: Death::Paused,
            warm_up: 0,
            ..Scenario::named("process").context("the base")?
        };
        let scenario = Scenario {
            process: None,
            ..scenario
        };
        let luggage = Luggage {
            tools: network_card::modules(lab)?,
            ..Luggage::default()
        };
        let mut host = lab.live(&scenario, &luggage, &lab.new_run())?;
        let up = network_card::up("/tools", ADDRESS);
        host.run(&up, MINUTE)?.success(&up)?;
        for guest in guests {
            let waits = format!(
                "for i in $(seq 100); do \
                     qmp /run/{name}.qmp query-status && exit 0; sleep 0.3; \
                 done; cat /data/{name}.log; exit 1",
                name = guest.name
            );
            host.run(&waits, 2 * MINUTE)?.success(&waits)?;
        }
        Ok(Self { host, wire })
    }

    /// What [`Hardware::network`] of the other host must be.
    #[must_use]
    pub fn wire(&self) -> &Path {
        &self.wire.0
    }

    /// Turns it off, and reads what its guests left.
    pub fn finish(self) -> Result<Aftermath> {
        self.host.finish()
    }
}

/// The same command line. It waits to be told by QMP what comes, and from where. Its file of output is
/// that of this host.
fn expected(guest: &Guest) -> Guest {
    Guest {
        options: format!("{} -incoming defer", guest.options)
            .trim()
            .to_owned(),
        ..guest.clone()
    }
}

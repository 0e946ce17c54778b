//! The modules of a lab host's network card ([`crate::Hardware::network`]): no image has them, so a
//! test takes them along.

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::Lab;
use crate::debian::Debian;

/// In their order.
const MODULES: [&str; 3] = [
    "net/core/failover",
    "drivers/net/net_failover",
    "drivers/net/virtio_net",
];

/// For a host's luggage or tools: (file name, file).
pub fn modules(lab: &Lab) -> Result<Vec<(String, PathBuf)>> {
    let kernel = Debian::new(&lab.dir).kernel()?;
    let modules = MODULES.iter().map(|module| (module, kernel.module(module)));
    modules
        .map(|(module, file)| Ok((file_of(module), file?.context("built in")?)))
        .collect()
}

/// The shell command that loads them from the directory where they are in the host.
#[must_use]
pub fn load(directory: &str) -> String {
    MODULES
        .map(|module| format!("insmod {directory}/{}", file_of(module)))
        .join("; ")
}

/// The shell command that also gives the card an address and turns it on.
#[must_use]
pub fn up(directory: &str, address: &str) -> String {
    format!(
        "{}; ip addr add {address}/24 dev eth0 && ip link set eth0 up",
        load(directory)
    )
}

fn file_of(module: &str) -> String {
    format!("{}.ko", module.rsplit('/').next().unwrap_or(module))
}

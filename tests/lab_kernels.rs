//! Other kernels than Debian 12's: a host with Debian 13's (6.12) dies and gets its guests and its
//! program back; and one with 6.1 is booted again with 6.12, for an update may have been waiting.
//!
//! Needs the lab (docs/lab.md): `scripts/test --all` runs these.

use anyhow::{Context, Result, ensure};
use std::path::Path;
use std::time::Duration;
use vmrestore_lab::{Lab, Luggage, Scenario};

const MINUTE: Duration = Duration::from_secs(60);
/// Lines that each guest and the program must print after its restore.
const LINES: usize = 20;

/// A host of `dies` crashes, one of `boots` gets everything back.
fn across(dies: &Lab, boots: &Lab, scenario: &str) -> Result<()> {
    let scenario = Scenario::named(scenario).context("no such scenario")?;
    let dump = dies.dump(&scenario)?;
    let vmrestore = Path::new(env!("CARGO_BIN_EXE_vmrestore"));
    let mut host = boots.reboot_updated(&dump, &Luggage::vmrestore(vmrestore))?;
    let release = host.run("uname -r", MINUTE)?.success("uname")?.stdout;
    println!("restored on {release}");
    for command in [
        "vmrestore list /dump/hostdump",
        "vmrestore check /dump/hostdump",
        "vmrestore guests /dump/hostdump",
        "vmrestore process /dump/hostdump lab-process",
    ] {
        let output = host.run(command, 5 * MINUTE)?;
        println!("{command}\n{}{}", output.stdout, output.stderr);
        ensure!(matches!(output.code, 0 | 8), "{command}: {}", output.code);
    }
    host.follow_all()?;
    for name in host.names() {
        host.wait_new_lines(&name, LINES, 3 * MINUTE)?;
    }
    for (name, verdict) in host.finish()?.verdicts(LINES) {
        ensure!(verdict.is_good(), "{name}: {verdict}");
        println!("{name}: {verdict}");
    }
    Ok(())
}

#[test]
#[ignore = "needs the lab: scripts/test --all"]
fn a_host_with_a_newer_kernel_gets_its_guests_back() -> Result<()> {
    let lab = Lab::prepare_newer()?;
    across(&lab, &lab, "main")
}

#[test]
#[ignore = "needs the lab: scripts/test --all"]
fn they_go_on_after_the_host_was_booted_with_a_newer_kernel() -> Result<()> {
    across(&Lab::prepare()?, &Lab::prepare_updated()?, "main")
}

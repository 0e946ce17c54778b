//! What KVM can be told comes back through a real crash: a process with a VM
//! for each state and each exit in flight (`tests/tiny_guest/stay.rs`) is met
//! by a panic, restored from the dump, and compares for itself.
//!
//! Needs the lab (docs/lab.md): `scripts/test` runs it with `--include-ignored`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use vmrestore_lab::crash::{Extra, Record};
use vmrestore_lab::{CachedDump, Lab, Luggage, Scenario};

const MINUTE: Duration = Duration::from_secs(60);

/// The test binary of `tests/tiny_guest`.
fn tiny_guest() -> Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args([
            "test",
            "--test",
            "tiny_guest",
            "--no-run",
            "--message-format=json",
        ])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()?;
    let text = String::from_utf8(output.stdout)?;
    text.lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|message| message["target"]["name"] == "tiny_guest")
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
        .context("cargo names no executable of tiny_guest")
}

#[test]
#[ignore = "needs the lab: scripts/test"]
fn every_state_and_every_exit_comes_back_through_a_crash() -> Result<()> {
    let lab = Lab::prepare()?;
    let work = lab.new_run();
    let scenario = Scenario {
        guests: Vec::new(),
        process: None,
        ..Scenario::named("microvm").context("no such scenario")?
    };
    let extra = Extra {
        luggage: vec![("tiny_guest".into(), tiny_guest()?)],
        keep: Vec::new(),
        alive: Some(Box::new(|machine| {
            // On the data disk, which is the same after the reboot.
            let start = "cp -p /dump/tiny_guest /data/ && sync && \
                 (TINY_STAY=/data/stay setsid /data/tiny_guest --ignored --exact stay::stays \
                  --nocapture > /data/stay.out 2>&1 < /dev/null &) && \
                 for i in $(seq 600); do [ -e /data/stay/ready ] && sync && exit 0; \
                 sleep 0.5; done; \
                 cat /data/stay.out; exit 1";
            machine.agent.run(start, 6 * MINUTE)?.success("start")?;
            Ok(())
        })),
        ..Extra::default()
    };
    lab.crash_once(&scenario, &work, extra)?;
    let dump = CachedDump {
        dir: work.clone(),
        record: Record {
            scenario,
            images: lab.images.key.clone(),
            seconds_to_crash: 0.0,
            seconds_to_dump: 0.0,
            lost_attempts: Vec::new(),
        },
    };

    let vmrestore = Path::new(env!("CARGO_BIN_EXE_vmrestore"));
    let run = lab.new_run();
    let mut host = lab.reboot_in(&dump, &Luggage::vmrestore(vmrestore), &run)?;
    let restored = host.run("vmrestore --json guests /dump/hostdump", 5 * MINUTE)?;
    eprintln!("{}{}", restored.stdout, restored.stderr);
    ensure!(
        matches!(restored.code, 0 | 8),
        "exit code {}: {}",
        restored.code,
        restored.stderr
    );
    let done = host.run(
        "touch /data/stay/go; for i in $(seq 600); do [ -e /data/stay/report ] && break; sleep 0.5; \
         done; cat /data/stay/report; tail -5 /data/stay.out",
        6 * MINUTE,
    )?;
    drop(host);
    println!("{}", done.stdout);
    let faults: Vec<&str> = done
        .stdout
        .lines()
        .take_while(|line| *line != "DONE")
        .collect();
    ensure!(
        done.stdout.lines().any(|line| line == "DONE"),
        "it did not end: {}",
        done.stdout
    );
    ensure!(faults.is_empty(), "{}", faults.join("\n"));
    std::fs::remove_dir_all(&work)?;
    std::fs::remove_dir_all(&run)?;
    Ok(())
}

//! System calls that were under way when the host died (docs/syscalls.md): timeouts go on with what
//! was left of them, and a half-done write goes on behind what was written.
//!
//! Needs the lab (docs/lab.md): `scripts/test` sets it up and runs these with `--include-ignored`.
//! The program (tests/programs/calls.c) says of each call what it returned, whether its registers are
//! what they were, and how long it took by the clock that stood still between crash and restore.

use anyhow::{Context, Result, ensure};
use std::path::Path;
use std::time::Duration;
use vmrestore_lab::crash::Extra;
use vmrestore_lab::scenario::MAIN_DUMP;
use vmrestore_lab::{CachedDump, Lab, Luggage, Scenario};

const MINUTE: Duration = Duration::from_secs(60);
const RESTORE: Duration = Duration::from_secs(300);
const PID: u32 = 5201;
/// Seconds of every timeout, and how many of them have gone by at the crash, at the least.
const TIMEOUT: u64 = 150;
const BEFORE: u64 = 60;

fn vmrestore() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_vmrestore"))
}

fn crash(lab: &Lab, program: &Path) -> Result<CachedDump> {
    let mut scenario = Scenario::named("process").context("no such scenario")?;
    scenario.name = "calls".into();
    scenario.process = None;
    scenario.random_ms = 0;
    let mut extra = Extra::of(&lab.dir, &scenario)?;
    extra.luggage.push(("calls".into(), program.to_owned()));
    extra.alive = Some(Box::new(|machine| {
        let start = format!(
            "cp /dump/calls /data/ && mkdir /data/c && echo {} > /proc/sys/kernel/ns_last_pid; \
             setsid /data/calls /data/c {TIMEOUT} </dev/null >/dev/null 2>&1 & echo $!",
            PID - 1
        );
        let got = machine.agent.run(&start, MINUTE)?.success("start")?;
        ensure!(got.stdout.trim() == PID.to_string(), "{}", got.stdout);
        machine
            .agent
            .run(&format!("sleep {BEFORE}; sync"), 3 * MINUTE)?
            .success("wait")?;
        Ok(())
    }));
    lab.crash(scenario, extra)
}

#[test]
#[ignore = "needs the lab: scripts/test"]
fn calls_go_on_where_they_were_at_the_crash() -> Result<()> {
    let lab = Lab::prepare()?;
    let program = lab.test_program("calls")?;
    let dump = crash(&lab, &program)?;
    let mut host = lab.reboot(&dump, &Luggage::vmrestore(vmrestore()))?;
    let before = host.run("cat /data/c/log", MINUTE)?.stdout;
    ensure!(before.starts_with("ready"), "{before}");
    ensure!(before.lines().count() == 1, "a call was over:\n{before}");
    let restore = format!("vmrestore process /dump/{MAIN_DUMP} pid:{PID}");
    let output = host.run(&restore, RESTORE)?;
    println!("{}{}", output.stdout, output.stderr);
    ensure!(output.code == 0, "exit code {}", output.code);
    let wait = format!(
        "touch /data/c/go; for i in $(seq {}); do grep -q done /data/c/log && break; sleep 1; done; \
         cat /data/c/log",
        4 * TIMEOUT
    );
    let log = host.run(&wait, 15 * MINUTE)?.success("wait")?.stdout;
    println!("{log}");
    for (name, result) in [
        ("sleep", 0),
        ("clock", 0),
        ("futex", -110),
        ("poll", 0),
        ("epoll", 0),
        ("ppoll", 0),
        ("select", 0),
        ("sigwait", -11),
        ("write", 100_000),
        ("read", 100_000),
        ("writev", 100_000),
        ("readv", 100_000),
    ] {
        let line = log.lines().find(|l| l.starts_with(&format!("{name} ")));
        let line = line.with_context(|| format!("{name} has not returned"))?;
        ensure!(line.starts_with(&format!("{name} {result} ok ")), "{line}");
        if result == 100_000 {
            continue;
        }
        // Begun anew, it would have taken what had gone by before the crash as well.
        let took: u64 = line.rsplit(' ').next().unwrap_or_default().parse()?;
        ensure!(
            (TIMEOUT * 1000..(TIMEOUT + BEFORE) * 1000).contains(&took),
            "{line}: of {TIMEOUT} s"
        );
    }
    host.finish()?;
    std::fs::remove_dir_all(&dump.dir)?;
    std::fs::remove_file(program)?;
    Ok(())
}

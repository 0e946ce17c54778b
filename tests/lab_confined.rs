//! A process that AppArmor confines comes back confined, each of its threads, or not at all.
//!
//! Needs the lab (docs/lab.md): `scripts/test --all` runs it.

use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};
use std::time::Duration;
use vmrestore_lab::crash::Extra;
use vmrestore_lab::scenario::MAIN_DUMP;
use vmrestore_lab::{Lab, Luggage, Scenario, debian::Debian};

const MINUTE: Duration = Duration::from_secs(60);
const RESTORE: Duration = Duration::from_secs(300);
const PID: u32 = 5301;
const PROFILE: &str = "abi <abi/3.0>,
profile labprofile flags=(attach_disconnected) {
  file,
  signal,
  ptrace,
  deny /data/secret rw,
}
";
/// What the program says of each thread.
const CONFINED: &str = "labprofile (enforce) secret 13";
const MOUNT: &str = "mount -t securityfs s /sys/kernel/security";
const LOAD: &str = "cat /dump/policy > /sys/kernel/security/apparmor/.replace";

/// The profile as the kernel takes it.
fn policy(lab: &Lab) -> Result<PathBuf> {
    let to = lab.new_run().with_extension("policy");
    std::fs::create_dir_all(to.parent().context("no parent")?)?;
    Debian::new(&lab.dir).compile_policy(PROFILE, &to)?;
    Ok(to)
}

/// The numbers of the lines that say that both threads are confined; any other line is an error.
fn ticks(log: &str) -> Result<Vec<u64>> {
    log.lines()
        .map(|line| {
            let all = format!(" first {CONFINED}, second {CONFINED}");
            let number = line
                .strip_prefix("tick ")
                .and_then(|l| l.strip_suffix(&all));
            Ok(number.with_context(|| line.to_owned())?.parse()?)
        })
        .collect()
}

#[test]
#[ignore = "needs the lab: scripts/test --all"]
fn what_apparmor_confined_comes_back_confined() -> Result<()> {
    let lab = Lab::prepare()?;
    let program = lab.test_program("confined")?;
    let policy = policy(&lab)?;
    let mut scenario = Scenario::named("process").context("no such scenario")?;
    scenario.name = "confined".into();
    scenario.process = None;
    scenario.random_ms = 0;
    let mut extra = Extra::of(&lab.dir, &scenario)?;
    extra.luggage.push(("confined".into(), program.clone()));
    extra.luggage.push(("policy".into(), policy.clone()));
    extra.alive = Some(Box::new(|machine| {
        let start = format!(
            "{MOUNT} && {LOAD} && cp /dump/confined /data/ && mkdir /data/c && echo no > /data/secret && \
             echo {} > /proc/sys/kernel/ns_last_pid; \
             setsid sh -c 'printf \"exec labprofile\" > /proc/self/attr/exec && exec /data/confined /data/c' \
             </dev/null >/dev/null 2>&1 & echo $!",
            PID - 1
        );
        let got = machine.agent.run(&start, MINUTE)?.success("start")?;
        ensure!(got.stdout.trim() == PID.to_string(), "{}", got.stdout);
        let wait = machine
            .agent
            .run("sleep 5; sync; cat /data/c/log", MINUTE)?;
        ensure!(!ticks(&wait.stdout)?.is_empty(), "it does not run");
        Ok(())
    }));
    let dump = lab.crash(scenario, extra)?;

    let mut luggage = Luggage::vmrestore(Path::new(env!("CARGO_BIN_EXE_vmrestore")));
    luggage.dumps = vec![
        (MAIN_DUMP.into(), dump.path()),
        ("policy".into(), policy.clone()),
    ];
    let mut host = lab.reboot(&dump, &luggage)?;
    let before = host.run(&format!("{MOUNT} && cat /data/c/log"), MINUTE)?;
    let before = ticks(&before.success("log")?.stdout)?;
    let restore = format!("vmrestore process /dump/{MAIN_DUMP} pid:{PID}");
    let refused = host.run(&restore, RESTORE)?;
    println!("{}{}", refused.stdout, refused.stderr);
    ensure!(refused.code == 5, "exit code {}", refused.code);
    ensure!(
        refused.stderr.contains("labprofile is not loaded") && refused.stderr.contains("hint: "),
        "it does not say why"
    );
    let forced = host.run(&format!("{restore} --force --dry-run"), RESTORE)?;
    println!("{}{}", forced.stdout, forced.stderr);
    let said = format!("{}{}", forced.stdout, forced.stderr);
    ensure!(said.contains("lives on without"), "the loss is not said");

    host.run(LOAD, MINUTE)?.success("load the profile")?;
    let restored = host.run(&restore, RESTORE)?;
    println!("{}{}", restored.stdout, restored.stderr);
    ensure!(matches!(restored.code, 0 | 8), "code {}", restored.code);
    let wait = "for i in $(seq 60); do sleep 1; [ $(wc -l < /data/c/log) -gt LINES ] && break; done; cat /data/c/log";
    let wait = wait.replace("LINES", &(before.len() + 30).to_string());
    let log = host.run(&wait, 3 * MINUTE)?.success("wait")?.stdout;
    let after = ticks(&log)?;
    ensure!(after.len() > before.len() + 20, "it does not go on:\n{log}");
    ensure!(
        after
            .iter()
            .zip(1..)
            .all(|(tick, expected)| *tick == expected),
        "a tick is missing or there twice:\n{log}"
    );
    println!("{} ticks before, {} after", before.len(), after.len());
    host.finish()?;
    std::fs::remove_dir_all(&dump.dir)?;
    std::fs::remove_file(program)?;
    std::fs::remove_file(policy)?;
    Ok(())
}

//! TCP connections through a real crash and a reboot, under load: one between two processes of the
//! host, which are restored together, and one with another machine, which never learns that the
//! host was gone. Each end checks every byte that it reads, and its log says how far it has come.
//!
//! The other machine is a network namespace here, with a tap whose frames go to the lab's host:
//! this machine's own kernel holds that end. Needs the lab (docs/lab.md) and /dev/net/tun as root
//! (or as a user who may make namespaces): `scripts/test --all` runs it with `--include-ignored`.

use anyhow::{Context, Result, bail, ensure};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use vmrestore_lab::crash::{Extra, Record};
use vmrestore_lab::network_card;
use vmrestore_lab::scenario::MAIN_DUMP;
use vmrestore_lab::{CachedDump, Lab, Luggage, Rebooted, Scenario};

const MINUTE: Duration = Duration::from_secs(60);
const RESTORE: Duration = Duration::from_secs(300);
/// What the other end waits between two tries grows up to two minutes.
const AGAIN: Duration = Duration::from_secs(300);
const PAIR: u32 = 6000;
const OUTSIDE: u32 = 6100;
/// Logs in the host, and how each is called.
const LOGS: [&str; 3] = ["pair/server", "pair/client", "outside/client"];

/// The other machine. It is killed when this is dropped.
struct Peer {
    child: Child,
    dir: PathBuf,
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

impl Peer {
    fn start(program: &Path) -> Result<Self> {
        let dir = std::env::temp_dir().join(format!("vmrestore-peer-{}", std::process::id()));
        std::fs::create_dir_all(&dir)?;
        let mut child = Command::new(program)
            .arg("peer")
            .args([dir.join("wire"), dir.clone()])
            .stdout(Stdio::piped())
            .spawn()?;
        let out = child.stdout.take().context("its output")?;
        let mut said = String::new();
        BufReader::new(out).read_line(&mut said)?;
        let peer = Self { child, dir };
        ensure!(said == "ready\n", "the other machine does not start");
        Ok(peer)
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.join("peer")).unwrap_or_default()
    }
}

/// How many bytes an end had sent and got in its last line; an error if it ended or found a fault.
fn progress(name: &str, log: &str) -> Result<(u64, u64)> {
    ensure!(
        !log.contains("BAD") && !log.contains("END"),
        "{name}:\n{log}"
    );
    let Some(line) = log.lines().rfind(|line| line.starts_with("sent ")) else {
        return Ok((0, 0));
    };
    let words: Vec<&str> = line.split(' ').collect();
    let number = |at: usize| words.get(at).and_then(|w| w.parse().ok());
    Ok((number(1).context("sent")?, number(3).context("got")?))
}

/// What the host's administrator does at boot: no answer leaves the host before `arp on`.
fn network(modules: &str) -> String {
    format!(
        "{}; ip link set eth0 arp off; ip link set eth0 up; ip addr add 10.77.0.2/24 dev eth0",
        network_card::load(modules)
    )
}

fn crash(
    lab: &Lab,
    program: &Path,
    modules: &[(String, PathBuf)],
    peer: &Peer,
) -> Result<CachedDump> {
    let mut scenario = Scenario::named("process").context("no such scenario")?;
    scenario.name = "tcp".into();
    scenario.process = None;
    scenario.hardware.cpus = 1;
    scenario.hardware.network = Some(peer.dir.join("wire"));
    let mut extra = Extra::of(&lab.dir, &scenario)?;
    extra.luggage.push(("stream".into(), program.to_owned()));
    extra.luggage.extend_from_slice(modules);
    extra.alive = Some(Box::new(|machine| {
        let agent = &mut machine.agent;
        let up = format!(
            "{}; ip link set eth0 arp on; cp /dump/stream /data/",
            network("/dump")
        );
        agent.run(&up, MINUTE)?.success("the network")?;
        for (pid, dir, arguments) in [
            (PAIR, "pair", "pair /data/pair"),
            (OUTSIDE, "outside", "connect 10.77.0.1 7000 /data/outside"),
        ] {
            let start = format!(
                "mkdir /data/{dir}; echo {} > /proc/sys/kernel/ns_last_pid; \
                 setsid /data/stream {arguments} </dev/null >/data/{dir}/out 2>&1 & echo $!",
                pid - 1
            );
            let got = agent.run(&start, MINUTE)?.success("start")?;
            ensure!(got.stdout.trim() == pid.to_string(), "{}", got.stdout);
        }
        let wait = "i=0; while [ $i -lt 120 ]; do [ $(cat /data/pair/client | wc -l) -gt 4 ] && \
             [ $(cat /data/outside/client | wc -l) -gt 4 ] && exit 0; sleep 0.5; i=$((i + 1)); \
             done; cat /data/*/*; ip addr; exit 1";
        let waited = agent.run(wait, 2 * MINUTE)?;
        ensure!(waited.code == 0, "{}{}", waited.stdout, waited.stderr);
        agent.run("sync", MINUTE)?.success("sync")?;
        Ok(())
    }));
    let dir = lab.new_run();
    lab.crash_once(&scenario, &dir, extra)?;
    let record = Record {
        scenario,
        images: lab.images.key.clone(),
        seconds_to_crash: 0.0,
        seconds_to_dump: 0.0,
        lost_attempts: vec![],
    };
    Ok(CachedDump { dir, record })
}

fn in_host(host: &mut Rebooted) -> Result<Vec<(u64, u64)>> {
    let mut found = Vec::new();
    for name in LOGS {
        let log = host.run(&format!("cat /data/{name}"), MINUTE)?.stdout;
        found.push(progress(name, &log)?);
    }
    Ok(found)
}

#[test]
#[ignore = "needs the lab: scripts/test"]
fn connections_go_on_over_the_death_of_their_host() -> Result<()> {
    /// Bytes that each end must have sent and got since.
    const ENOUGH: u64 = 4 << 20;
    let lab = Lab::prepare()?;
    let program = lab.test_program("stream")?;
    let modules = network_card::modules(&lab)?;
    let peer = Peer::start(&program)?;
    let dump = crash(&lab, &program, &modules, &peer)?;
    let mut luggage = Luggage::vmrestore(Path::new(env!("CARGO_BIN_EXE_vmrestore")));
    luggage.tools.extend(modules);
    let mut host = lab.reboot(&dump, &luggage)?;
    let died = progress("peer", &peer.log())?;
    host.run(&network("/tools"), MINUTE)?
        .success("the network")?;
    let before = in_host(&mut host)?;
    for which in [
        format!("pid:{PAIR} --tree"),
        format!("pid:{OUTSIDE} --tcp require"),
    ] {
        let restore = format!("vmrestore process /dump/{MAIN_DUMP} {which}");
        let output = host.run(&restore, RESTORE)?;
        println!("{}{}", output.stdout, output.stderr);
        ensure!(output.code == 0, "{which}: exit code {}", output.code);
    }
    host.run("ip link set eth0 arp on", MINUTE)?
        .success("arp on")?;

    let begin = Instant::now();
    loop {
        std::thread::sleep(Duration::from_secs(2));
        let (now, theirs) = (in_host(&mut host)?, progress("peer", &peer.log())?);
        let steps = before.iter().zip(&now).chain([(&died, &theirs)]);
        let far = |(a, b): (&(u64, u64), &(u64, u64))| b.0 > a.0 + ENOUGH && b.1 > a.1 + ENOUGH;
        if steps.clone().all(far) {
            for ((name, a), b) in LOGS.iter().zip(&before).zip(&now) {
                println!("{name}: {a:?} at the crash, {b:?} now");
            }
            println!("the other machine: {died:?} at the crash, {theirs:?} now");
            break;
        }
        if begin.elapsed() > AGAIN {
            let state = host
                .run("cat /proc/net/tcp; ip addr; arp -n; ps", MINUTE)?
                .stdout;
            bail!("before {before:?} {died:?}, now {now:?} {theirs:?}\n{state}");
        }
    }
    drop(host);
    std::fs::remove_dir_all(&dump.dir)?;
    std::fs::remove_file(program)?;
    Ok(())
}

//! Containers through a crash: a process in mount, PID, network, UTS, IPC and
//! cgroup namespaces (one in a user namespace too) comes back into a container of
//! the same name that was started, empty, after the reboot; and is refused where
//! there is none. The first process of a container comes back as the first of a
//! PID namespace below that of the new one, alone or with its child; one that had
//! only a PID and a mount namespace needs no container; one in a network namespace
//! of `ip netns` comes back into that of the same name, with its TCP connection.
//!
//! The containers are made by tests/programs/box.c, with no runtime. The process
//! counts, and says its nonce, which only its memory knew, through a file, a
//! UNIX socket, a TCP port of its network namespace, and a System V segment.
//!
//! Needs the lab (docs/lab.md): `scripts/test --all` runs it with
//! `--include-ignored`.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use vmrestore_lab::crash::{Extra, Record};
use vmrestore_lab::{CachedDump, Lab, Luggage, Output, Rebooted, Scenario};

const MINUTE: Duration = Duration::from_secs(60);
const RESTORE: Duration = Duration::from_secs(300);

/// Containers: name, words before the program, and the program.
const BOXES: [(&str, &str, &str); 6] = [
    ("one", "", "inmate"),
    ("two", "", "inmate"),
    ("users", "user", "inmate"),
    ("lead", "init", "talker"),
    ("userlead", "user init", "inmate"),
    ("pair", "", "talker"),
];

/// What the host's administrator does at each boot.
const SET_UP: &str = "mkdir -p /sys/fs/cgroup; \
     grep -q ' cgroup2 ' /proc/mounts || mount -t cgroup2 none /sys/fs/cgroup; \
     mkdir -p /run/old; grep -q ' /run/old ' /proc/mounts || mount -t cgroup -o freezer none /run/old; \
     mkdir -p /run/old/slow; \
     for b in one two users lead userlead pair blue lone; do mkdir -p /data/$b/bin /data/$b/proc /data/$b/tmp /data/$b/run \
     /data/$b/job; done";

fn vmrestore() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_vmrestore"))
}

/// A host in which all of them are under way when it dies.
fn crash(lab: &Lab) -> Result<CachedDump> {
    let mut scenario = Scenario::named("process").context("no such scenario")?;
    scenario.name = "containers".into();
    scenario.process = None;
    // Who crashes the host has the only CPU: nobody else loses registers.
    scenario.hardware.cpus = 1;
    let mut extra = Extra::of(&lab.dir, &scenario)?;
    let program = lab.test_program("box")?;
    extra.luggage.push(("box".into(), program.clone()));
    extra.alive = Some(Box::new(|machine| {
        let agent = &mut machine.agent;
        let mut script = format!("set -e; {SET_UP}\n");
        script.push_str("cp /dump/box /data/box; chmod 755 /data/box\n");
        for (name, words, program) in BOXES {
            script.push_str(&format!(
                "cp /data/box /data/{name}/bin/box\n\
                 echo 6000 > /proc/sys/kernel/ns_last_pid\n\
                 /data/box start {name} /data/{name} {words} /bin/box {program} {name} \
                 > /data/{name}/init\n\
                 sort -n /sys/fs/cgroup/{name}/cgroup.procs | tail -n 1 > /data/{name}/pid\n"
            ));
        }
        script.push_str(
            "echo 6000 > /proc/sys/kernel/ns_last_pid\n\
             BASE=/data/blue KEY=1 /data/box net blue /data/box talker blue > /data/blue/pid\n\
             BASE=/data/lone KEY=2 /data/box lone /data/box inmate lone > /data/lone/pid\n\
             cat /data/lone/pid > /run/old/slow/cgroup.procs\n",
        );
        script.push_str("sleep 3; sync; sleep 2; tail -n 1 /data/*/job/log\n");
        let said = agent.run(&script, 3 * MINUTE)?.success("start")?;
        println!("{}", said.stdout);
        Ok(())
    }));
    let dir = lab.new_run();
    lab.crash_once(&scenario, &dir, extra)?;
    std::fs::remove_file(program)?;
    let record = Record {
        scenario,
        images: lab.images.key.clone(),
        seconds_to_crash: 0.0,
        seconds_to_dump: 0.0,
        lost_attempts: vec![],
    };
    std::fs::write(dir.join("record.json"), serde_json::to_vec(&record)?)?;
    Ok(CachedDump { dir, record })
}

/// Restores one, and says what was said of it.
fn restore(host: &mut Rebooted, name: &str, words: &str) -> Result<(Output, Value)> {
    restore_set(host, name, "pid:$(cat /data/NAME/pid)", words)
}

/// The same with another selector than that of its inmate.
fn restore_set(
    host: &mut Rebooted,
    name: &str,
    selector: &str,
    words: &str,
) -> Result<(Output, Value)> {
    let selector = selector.replace("NAME", name);
    let command = format!("vmrestore --json process /dump/hostdump {selector} {words}");
    let output = host.run(&command, RESTORE)?;
    let document: Value = serde_json::from_str(&output.stdout)
        .with_context(|| format!("{}{}", output.stdout, output.stderr))?;
    let result = document["results"][0].clone();
    println!(
        "{name} {words}: {} in {} ms, exit code {}; {}",
        result["verdict"], result["milliseconds"], output.code, result["error"]
    );
    for line in result["fidelity"].as_array().into_iter().flatten() {
        println!(
            "  {} {} {}: {}",
            line["level"], line["subject"], line["what"], line["how"]
        );
    }
    Ok((output, result))
}

fn refused(host: &mut Rebooted, name: &str, words: &str, why: &str) -> Result<()> {
    let (output, result) = restore(host, name, words)?;
    ensure!(output.code == 5, "exit code {}", output.code);
    ensure!(result["verdict"] == "refused", "{result}");
    let error = result["error"].as_str().unwrap_or_default();
    ensure!(error.contains(why), "{error}");
    Ok(())
}

/// Starts a container with nothing in it; the PID of its first process.
fn start(host: &mut Rebooted, name: &str, root: &str, words: &str) -> Result<String> {
    let script = format!("/data/box start {name} /data/{root} {words}");
    let said = host.run(&script, MINUTE)?.success("start")?.stdout;
    Ok(said.trim().to_owned())
}

/// Each line counts one further, and says the same of all else.
fn unbroken(text: &str) -> Result<usize> {
    let lines: Vec<Vec<&str>> = text.lines().map(|l| l.split(' ').collect()).collect();
    let first = lines.first().context("it has said nothing")?;
    for (at, line) in lines.iter().enumerate() {
        ensure!(line.len() == 10, "line {at}: {line:?}");
        ensure!(line[3] == (at + 1).to_string(), "line {at}: {line:?}");
        for same in [1, 5, 7, 9] {
            ensure!(line[same] == first[same], "line {at}: {line:?}");
        }
    }
    Ok(lines.len())
}

/// What runs in a container goes on, and answers in all ways.
fn lives(host: &mut Rebooted, name: &str, init: &str) -> Result<()> {
    let log = format!("cat /data/{name}/job/log");
    let before = unbroken(&host.run(&log, MINUTE)?.stdout)?;
    let begin = Instant::now();
    let text = loop {
        let text = host.run(&log, MINUTE)?.stdout;
        if unbroken(&text).with_context(|| name.to_owned())? > before + 20 {
            break text;
        }
        ensure!(begin.elapsed() < MINUTE, "{name} says nothing more: {text}");
        std::thread::sleep(Duration::from_secs(1));
    };
    let nonce = text.split(' ').nth(1).context("no nonce")?.to_owned();
    for ask in [
        format!("/data/box ask /data/{name}/run/inmate.sock"),
        format!("/data/box tcp {init}"),
    ] {
        let answer = host.run(&ask, MINUTE)?.success(&ask)?.stdout;
        ensure!(
            answer.contains(&format!("nonce {nonce} ")),
            "{ask}: {answer}"
        );
    }
    // Two have theirs in the host's IPC namespace.
    let key = match name {
        "blue" => 1,
        "lone" => 2,
        _ => 0,
    };
    let segment = host.run(&format!("KEY={key} /data/box segment {init}"), MINUTE)?;
    ensure!(segment.success("segment")?.stdout.starts_with("count "));
    println!(
        "{name}: {} lines without gap or repeat",
        text.lines().count()
    );
    Ok(())
}

/// Where a restored process is.
fn place(host: &mut Rebooted, result: &Value) -> Result<(String, String)> {
    let pid = result["new_pid"].as_i64().context("no PID")?;
    let script = format!("cat /proc/{pid}/cgroup; grep -E '^(NSpid|PPid)' /proc/{pid}/status");
    let said = host.run(&script, MINUTE)?.success("place")?.stdout;
    println!("{}", said.trim().replace('\n', ", "));
    let cgroup = said.lines().find_map(|l| l.strip_prefix("0::"));
    let pids = said.lines().find_map(|l| l.strip_prefix("NSpid:"));
    Ok((
        cgroup.unwrap_or_default().to_owned(),
        pids.unwrap_or_default().trim().to_owned(),
    ))
}

/// Each as PID 1 of a namespace below its container's, or of this host's.
fn first_processes(host: &mut Rebooted) -> Result<()> {
    refused(host, "lead", "", "no container of that name runs here")?;
    for (name, words) in [("lead", ""), ("userlead", "user")] {
        let init = start(host, name, name, words)?;
        let (output, result) = restore(host, name, "")?;
        ensure!(result["verdict"] == "running", "{}", output.stderr);
        lives(host, name, &init)?;
        let (cgroup, pids) = place(host, &result)?;
        ensure!(cgroup == format!("/{name}"), "{cgroup}");
        ensure!(
            pids.split('\t').count() == 3 && pids.ends_with("\t1"),
            "{pids:?}"
        );
    }
    // With its child, of which it hears when that ends.
    let init = start(host, "pair", "pair", "")?;
    let (output, result) = restore_set(host, "pair", "tree:pid:$(cat /data/NAME/init)", "")?;
    ensure!(result["verdict"] == "running", "{}", output.stderr);
    ensure!(
        result["processes"].as_array().map(Vec::len) == Some(2),
        "{result}"
    );
    lives(host, "pair", &init)?;
    let (_, pids) = place(host, &result)?;
    ensure!(pids.ends_with("\t1"), "{pids:?}");
    let child = result["processes"][1]["new_pid"]
        .as_i64()
        .context("no PID")?;
    let script = format!(
        "grep -E '^NSpid' /proc/{child}/status; kill -9 {child}; sleep 2; ls -d /proc/{child}; \
         kill -9 {init}; sleep 2; cat /sys/fs/cgroup/pair/cgroup.procs"
    );
    let said = host.run(&script, MINUTE)?.stdout;
    // Reaped; and with the container all of it goes.
    ensure!(
        said.lines().count() == 1 && said.ends_with("\t42\n"),
        "{said}"
    );
    // What it had of its own is made, and needs no container.
    let (output, result) = restore(host, "lone", "")?;
    ensure!(result["verdict"] == "running", "{}", output.stderr);
    lives(host, "lone", "1")?;
    let (_, pids) = place(host, &result)?;
    ensure!(
        pids.split('\t').count() == 2 && pids.ends_with("\t1"),
        "{pids:?}"
    );
    // Into its cgroup of the first version.
    let slow = host.run("cat /run/old/slow/cgroup.procs", MINUTE)?.stdout;
    let pid = result["new_pid"].to_string();
    ensure!(slow.trim() == pid, "{slow}");
    Ok(())
}

/// A network namespace that `ip netns` knows, and a TCP connection in it.
fn network_of_a_name(host: &mut Rebooted) -> Result<()> {
    refused(host, "blue", "", "open /run/netns/blue")?;
    refused(host, "blue", "--into netns:green", "open /run/netns/green")?;
    host.run("/data/box net blue", MINUTE)?.success("net")?;
    let (output, result) = restore(host, "blue", "")?;
    ensure!(result["verdict"] == "running", "{}", output.stderr);
    let pid = result["new_pid"].as_i64().context("no PID")?.to_string();
    lives(host, "blue", &pid)?;
    let script = format!("readlink /proc/{pid}/ns/net; stat -L -c 'net:[%i]' /run/netns/blue");
    let said = host.run(&script, MINUTE)?.success("where")?.stdout;
    let spaces: Vec<&str> = said.lines().collect();
    ensure!(spaces.len() == 2 && spaces[0] == spaces[1], "{said}");
    Ok(())
}

#[test]
#[ignore = "needs the lab: scripts/test --all"]
fn containers_come_back_into_containers_of_their_names() -> Result<()> {
    let lab = Lab::prepare()?;
    // A crash that was kept.
    let kept = std::env::var_os("VMRESTORE_LAB_CONTAINERS").map(PathBuf::from);
    let dump = match &kept {
        Some(dir) => CachedDump::open(dir)?,
        None => crash(&lab)?,
    };
    println!("the dump is {}", dump.dir.display());
    let luggage = Luggage::vmrestore(vmrestore());
    let mut host = lab.reboot(&dump, &luggage)?;
    let copy = format!("{SET_UP}; wc -l /data/*/job/log");
    println!("{}", host.run(&copy, MINUTE)?.success("set up")?.stdout);

    // Nobody of that name; somebody who is in no container.
    refused(&mut host, "one", "", "no container of that name runs here")?;
    refused(&mut host, "one", "--into 1", "namespace of its own")?;
    refused(
        &mut host,
        "one",
        "--into /nobody",
        "no process of this host is in the cgroup",
    )?;

    let init = start(&mut host, "one", "one", "")?;
    let (output, result) = restore(&mut host, "one", "")?;
    ensure!(result["verdict"] == "running", "{}", output.stderr);
    lives(&mut host, "one", &init)?;
    let (cgroup, pids) = place(&mut host, &result)?;
    ensure!(
        cgroup == "/one" && pids.ends_with("\t42"),
        "{cgroup} {pids:?}"
    );
    // Nothing of it is the host's.
    let segments = host.run("cat /proc/sysvipc/shm", MINUTE)?.stdout;
    ensure!(segments.lines().count() == 1, "{segments}");

    // Another name, with the same root directory; at first its PID is taken there.
    refused(&mut host, "two", "", "no container of that name runs here")?;
    let init = start(&mut host, "other", "two", "/bin/box idle other")?;
    refused(
        &mut host,
        "two",
        "--into /other",
        "in use in the container here",
    )?;
    host.run(&format!("kill -9 {init}; sleep 1"), MINUTE)?;
    start(&mut host, "other", "two", "")?;
    let (output, result) = restore(&mut host, "two", "--into /other")?;
    ensure!(result["verdict"] == "running", "{}", output.stderr);
    let (cgroup, pids) = place(&mut host, &result)?;
    ensure!(
        cgroup == "/other" && pids.ends_with("\t42"),
        "{cgroup} {pids:?}"
    );
    // It sees itself that its host has another name, and goes on counting.
    let said = host
        .run("sleep 2; tail -n 1 /data/two/job/log", MINUTE)?
        .stdout;
    ensure!(said.contains("BAD host"), "{said}");

    // With users of its own.
    let init = start(&mut host, "users", "users", "user")?;
    let (output, result) = restore(&mut host, "users", "")?;
    ensure!(result["verdict"] == "running", "{}", output.stderr);
    lives(&mut host, "users", &init)?;
    let (cgroup, _) = place(&mut host, &result)?;
    ensure!(cgroup == "/users", "{cgroup}");

    first_processes(&mut host)?;
    network_of_a_name(&mut host)?;
    host.finish()?;
    if kept.is_none() {
        std::fs::remove_dir_all(&dump.dir)?;
    }
    Ok(())
}

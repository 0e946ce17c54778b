//! Sets of processes through a real crash and a reboot: bash with a pipeline of
//! three commands, python3's multiprocessing, a family with zombies and shared
//! memory, and a shell on a pseudo-terminal. Each is judged by its own output,
//! in which nothing may be missing or come twice.
//!
//! Needs the lab (docs/lab.md): `scripts/test --all` runs it with
//! `--include-ignored`. bash and python3 are Debian's, this machine's own.

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use vmrestore_lab::crash::Extra;
use vmrestore_lab::{CachedDump, Lab, Luggage, Rebooted, Scenario};

const MINUTE: Duration = Duration::from_secs(60);
const RESTORE: Duration = Duration::from_secs(300);
/// Lines of the pipeline, results of the pool, records of the family.
const LINES: usize = 12000;
const RESULTS: usize = 1500;
const RECORDS: usize = 20000;

const POOL: &str = r#"
import multiprocessing, os, time

def work(n):
    time.sleep(0.03)
    s = 0
    for i in range(200):
        s = (s * 31 + n * i) % 1000003
    return n, s, os.getpid()

if __name__ == '__main__':
    multiprocessing.set_start_method('fork')
    with open('/data/pool/out', 'w', buffering=1) as out:
        with multiprocessing.Pool(3) as pool:
            for n, s, pid in pool.imap(work, range(RESULTS)):
                out.write(f'{n} {s} {pid}\n')
        out.write('done\n')
"#;

/// The sets, and how each is started; Python, which takes longest, first.
const SETS: [(&str, &str); 4] = [
    ("pool", "/data/t/python3 /data/t/pool.py"),
    (
        "pipeline",
        "/data/t/bash -c 'set -m; /data/t/tree numbers /data/pipeline LINES | \
         /data/t/tree double /data/pipeline | /data/t/tree log /data/pipeline; \
         echo ended $? >> /data/pipeline/end'",
    ),
    ("family", "/data/t/tree family /data/family RECORDS"),
    ("terminal", "/data/t/tree terminal /data/terminal"),
];

/// What the programs run in.
const SURROUNDINGS: &str = "export LD_LIBRARY_PATH=/data/t/lib PYTHONHOME=/data/t \
     PATH=/data/t:$PATH HOME=/data TERM=dumb";

fn vmrestore() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_vmrestore"))
}

/// An archive with the programs, for /data/t.
fn archive(lab: &Lab) -> Result<PathBuf> {
    let work = lab.dir.join(format!("trees-{}", std::process::id()));
    std::fs::create_dir_all(work.join("lib"))?;
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs/tree.c");
    let mut commands: Vec<String> = vec![format!(
        "cc -O1 -static -pthread -o tree {}",
        source.display()
    )];
    for (program, name) in [("/bin/bash", "bash"), ("/usr/bin/python3", "python3")] {
        commands.push(format!("cp -L {program} {name}"));
        commands.push(format!(
            "cp -L $(ldd {program} | grep -o '/lib/[^ ]*' | grep -v 'libc\\.so') lib/"
        ));
    }
    // The C library is the host's own; Python's is the standard library without what is large.
    commands.push("cp -r /usr/lib/python3.11 lib/python3.11".into());
    commands.push(
        "cd lib/python3.11 && rm -rf test idlelib tkinter ensurepip pydoc_data lib2to3 distutils \
         config-3.11* && find . -name __pycache__ -prune -exec rm -rf {} +"
            .into(),
    );
    std::fs::write(
        work.join("pool.py"),
        POOL.replace("RESULTS", &RESULTS.to_string()),
    )?;
    for command in commands {
        let done = Command::new("sh")
            .args(["-c", &command])
            .current_dir(&work)
            .status()?;
        ensure!(done.success(), "{command}: {done}");
    }
    let archive = work.with_extension("tar");
    let done = Command::new("tar")
        .arg("-chf")
        .arg(&archive)
        .arg("-C")
        .arg(&work)
        .arg(".")
        .status()?;
    ensure!(done.success(), "tar: {done}");
    std::fs::remove_dir_all(&work)?;
    Ok(archive)
}

/// A host in which all of them are under way when it dies.
fn crash(lab: &Lab) -> Result<CachedDump> {
    let mut scenario = Scenario::named("process").context("no such scenario")?;
    scenario.name = "trees".into();
    scenario.process = None;
    // Who crashes the host has the only CPU: nobody else loses registers.
    scenario.hardware.cpus = 1;
    let mut extra = Extra::of(&lab.dir, &scenario)?;
    let archive = archive(lab)?;
    extra.luggage.push(("trees.tar".into(), archive.clone()));
    extra.alive = Some(Box::new(|machine| {
        let agent = &mut machine.agent;
        let unpack = "mkdir -p /data/t /dev/shm && mount -t tmpfs shm /dev/shm; \
                      tar -C /data/t -xf /dump/trees.tar && sync";
        agent.run(unpack, 3 * MINUTE)?.success("unpack")?;
        for (name, command) in SETS {
            let command = command
                .replace("LINES", &LINES.to_string())
                .replace("RECORDS", &RECORDS.to_string());
            let start = format!(
                "{SURROUNDINGS}; mkdir -p /data/{name}; cd /data; \
                 setsid {command} </dev/null >/data/{name}/errors 2>&1 & echo $! >/data/{name}/pid"
            );
            agent.run(&start, MINUTE)?.success(name)?;
            if name == "pool" {
                let waits = "i=0; while [ $i -lt 240 ] && [ $(cat /data/pool/out | wc -l) -lt 9 ]; \
                             do sleep 0.5; i=$((i + 1)); done";
                agent.run(waits, 4 * MINUTE)?;
            }
        }
        let under_way = "i=0; while [ $i -lt 240 ]; do \
             [ $(cat /data/pipeline/log | wc -l) -gt 40 ] && \
             [ $(cat /data/pool/out | wc -l) -gt 40 ] && [ $(cat /data/family/log | wc -l) -gt 4 ] \
             && grep -q '\\[1\\]' /data/terminal/output && exit 0; sleep 0.5; i=$((i + 1)); done; \
             cat /data/*/errors; wc -l /data/*/*; ps; exit 1";
        let waited = agent.run(under_way, 4 * MINUTE)?;
        ensure!(waited.code == 0, "{}{}", waited.stdout, waited.stderr);
        // Files that are new are on the disk; what is written from now on is not.
        agent.run("sync", MINUTE)?.success("sync")?;
        std::thread::sleep(Duration::from_secs(1));
        Ok(())
    }));
    let dump = lab.crash(scenario, extra)?;
    std::fs::remove_file(archive)?;
    Ok(dump)
}

/// The host's file once it has these words; the last line of the family's and the pipeline's log
/// must not be a complaint.
fn until(host: &mut Rebooted, file: &str, words: &str) -> Result<String> {
    let begin = Instant::now();
    loop {
        let text = host.run(&format!("cat {file} 2>/dev/null"), MINUTE)?.stdout;
        ensure!(!text.contains("BAD"), "{file}: {text}");
        if text.contains(words) {
            return Ok(text);
        }
        if begin.elapsed() > 5 * MINUTE {
            let ps = host
                .run("ps -o pid,ppid,pgid,sid,stat,args", MINUTE)?
                .stdout;
            let end: Vec<&str> = text.lines().rev().take(5).collect();
            bail!("{file} never says {words:?}; its end is {end:?}\n{ps}");
        }
        std::thread::sleep(Duration::from_secs(1));
    }
}

fn pipeline(host: &mut Rebooted) -> Result<()> {
    until(host, "/data/pipeline/end", "ended 7")?;
    let log = host.run("cat /data/pipeline/log", MINUTE)?.stdout;
    let expected: String = (1..=LINES).map(|n| format!("{}\n", 2 * n)).collect();
    ensure!(log == expected, "the pipeline's output has gaps or repeats");
    Ok(())
}

fn pool(host: &mut Rebooted) -> Result<()> {
    let out = until(host, "/data/pool/out", "done")?;
    let mut workers = std::collections::BTreeSet::new();
    let lines: Vec<&str> = out.lines().collect();
    ensure!(lines.len() == RESULTS + 1, "{} lines", lines.len());
    for (n, line) in lines.iter().take(RESULTS).enumerate() {
        let mut sum = 0u64;
        for i in 0..200 {
            sum = (sum * 31 + n as u64 * i) % 1_000_003;
        }
        let rest = line.strip_prefix(&format!("{n} {sum} "));
        workers.insert(rest.with_context(|| format!("result {n} is {line:?}"))?);
    }
    ensure!(
        workers.len() == 3,
        "other workers than its three: {workers:?}"
    );
    Ok(())
}

fn family(host: &mut Rebooted) -> Result<()> {
    until(host, "/data/family/log", "done")?;
    let records = host.run("cat /data/family/records", MINUTE)?.stdout;
    let expected: String = (1..=RECORDS).map(|n| format!("{n:08}\n")).collect();
    ensure!(
        records == expected,
        "the family's records have gaps or repeats"
    );
    Ok(())
}

fn terminal(host: &mut Rebooted) -> Result<()> {
    let types = |host: &mut Rebooted, at: usize, keys: &str| -> Result<()> {
        let file = format!("/data/terminal/type{at}");
        let command = format!("printf '{keys}' > {file}.new && mv {file}.new {file}");
        host.run(&command, MINUTE)?.success("type").map(drop)
    };
    // cat says again what is typed, until ^C; then the shell has its job still.
    types(host, 0, "polly\\n")?;
    let begin = Instant::now();
    while until(host, "/data/terminal/output", "polly")?
        .matches("polly")
        .count()
        < 2
    {
        ensure!(begin.elapsed() < MINUTE, "cat does not answer");
        std::thread::sleep(Duration::from_secs(1));
    }
    types(host, 1, "\\003")?;
    until(host, "/data/terminal/output", "^C")?;
    types(host, 2, "jobs; echo back $((40+2))\\n")?;
    let output = until(host, "/data/terminal/output", "back 42")?;
    ensure!(
        output.contains("Running"),
        "the shell has lost its job: {output}"
    );
    types(host, 3, "kill %%1; wait; exit 11\\n")?;
    until(host, "/data/terminal/log", "shell ended with 11").map(drop)
}

#[test]
#[ignore = "needs the lab: scripts/test --all"]
fn trees_come_back_from_a_crash_whole() -> Result<()> {
    let lab = Lab::prepare()?;
    let dump = crash(&lab)?;

    // Who belongs together, before anything is restored.
    let listed = Command::new(vmrestore())
        .args(["--json", "list"])
        .arg(dump.path())
        .output()?;
    let listing: Value = serde_json::from_slice(&listed.stdout)?;
    let kinds: Vec<&str> = listing["together"]
        .as_array()
        .context("no `together`")?
        .iter()
        .filter_map(|set| set["by"].as_str())
        .collect();
    for kind in ["pipe", "memory", "file"] {
        ensure!(kinds.contains(&kind), "nobody shares a {kind}: {kinds:?}");
    }

    // A part of the pipeline alone would be cut from the others: the report says from whom.
    let shared = listing["together"].as_array().into_iter().flatten();
    let pipe = shared
        .filter(|set| set["by"] == "pipe")
        .find_map(|set| set["pids"].as_array())
        .context("no pipe")?;
    let shown = Command::new(vmrestore())
        .args(["--json", "show"])
        .arg(dump.path())
        .arg(format!("pid:{}", pipe[0]))
        .output()?;
    let said = String::from_utf8_lossy(&shown.stdout);
    let other = format!("pid {} (", pipe[1]);
    ensure!(
        said.contains(&other) && said.contains("not restored"),
        "{said}"
    );

    let mut host = lab.reboot(&dump, &Luggage::vmrestore(vmrestore()))?;
    host.run("mkdir -p /dev/shm && mount -t tmpfs shm /dev/shm", MINUTE)?;
    let before = host
        .run(
            "wc -l /data/pipeline/log /data/pool/out /data/family/records",
            MINUTE,
        )?
        .stdout;
    println!("on the disk before the restore:\n{before}");
    // From a file, as a systemd unit has it; one of them was not there.
    let file = "for s in pipeline pool family terminal; do echo tree:pid:$(cat /data/$s/pid); \
                done > /data/selectors; echo 'unit:nobody # not there' >> /data/selectors; \
                vmrestore --json process /dump/hostdump --selectors /data/selectors";
    let output = host.run(file, RESTORE)?;
    let document: Value = serde_json::from_str(&output.stdout)
        .with_context(|| format!("{}{}", output.stdout, output.stderr))?;
    for result in document["results"].as_array().into_iter().flatten() {
        let processes = result["processes"].as_array().map_or(0, Vec::len);
        println!(
            "{} (pid {}): {processes} processes, {} in {} ms",
            result["name"], result["pid"], result["verdict"], result["milliseconds"]
        );
        if let Some(error) = result["error"].as_str() {
            println!("  error: {error}");
        }
        for line in result["fidelity"].as_array().into_iter().flatten() {
            println!(
                "  {} {} {}: {}",
                line["level"], line["subject"], line["what"], line["how"]
            );
        }
    }
    let results = document["results"].as_array().context("no results")?;
    ensure!(results.len() == 4, "{} sets", results.len());
    for result in results {
        ensure!(result["verdict"] == "running", "{result}");
        let processes = result["processes"].as_array().map_or(0, Vec::len);
        ensure!(processes == 4, "{result}");
    }
    ensure!(
        output.code == 7,
        "exit code {}: {}",
        output.code,
        output.stderr
    );
    println!(
        "{}",
        host.run("ps -o pid,ppid,pgid,sid,stat,args | grep /data/t", MINUTE)?
            .stdout
    );

    type Judge = fn(&mut Rebooted) -> Result<()>;
    let judges: [(&str, Judge); 4] = [
        ("family", family),
        ("pipeline", pipeline),
        ("pool", pool),
        ("terminal", terminal),
    ];
    let mut bad = Vec::new();
    for (name, judge) in judges {
        match judge(&mut host) {
            Ok(()) => println!("{name}: without gap or repeat"),
            Err(error) => {
                println!("{name}: {error:#}");
                bad.push(name);
            }
        }
    }
    ensure!(
        bad.is_empty(),
        "{bad:?}; the dump is kept in {}",
        dump.dir.display()
    );
    host.finish()?;
    std::fs::remove_dir_all(&dump.dir)?;
    Ok(())
}

//! Containers of a container runtime, through a crash: runc's, from Debian's package, with what a
//! runtime gives a container by default: namespaces, a root directory by pivot_root, masked parts of
//! /proc, fewer capabilities, a seccomp filter, no_new_privs, a device filter, a cgroup. After the
//! reboot runc starts an empty container of the same name, the container's own first process comes
//! back below its PID 1, or one of `runc exec` beside it; and runc still rules over what is in it.
//!
//! And a network namespace of `ip netns`, made and entered by iproute2.
//!
//! Needs the lab (docs/lab.md): `scripts/test --all` runs it with `--include-ignored`.
//! `VMRESTORE_RUNC_CRASH=DIR` takes a crash that was kept.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use vmrestore_lab::crash::Extra;
use vmrestore_lab::{CachedDump, Lab, Luggage, Rebooted, Scenario};

const MINUTE: Duration = Duration::from_secs(60);
const RESTORE: Duration = Duration::from_secs(300);
const PACKAGES: [&str; 2] = ["runc", "iproute2"];

/// What the host's administrator does at each boot.
const SET_UP: &str = "mkdir -p /sys/fs/cgroup; \
     grep -q ' cgroup2 ' /proc/mounts || mount -t cgroup2 none /sys/fs/cgroup";

/// A bundle's config.json: what `runc spec` writes, with Docker's capabilities, and a seccomp filter.
fn bundle(name: &str, program: &[&str]) -> Value {
    let capabilities = json!([
        "CAP_CHOWN",
        "CAP_DAC_OVERRIDE",
        "CAP_FOWNER",
        "CAP_KILL",
        "CAP_NET_BIND_SERVICE",
        "CAP_SETGID",
        "CAP_SETUID",
        "CAP_SYS_CHROOT",
    ]);
    let namespaces: Vec<Value> = ["pid", "network", "ipc", "uts", "mount", "cgroup"]
        .iter()
        .map(|kind| json!({ "type": kind }))
        .collect();
    let on = |kind: &str, at: &str, options: Value| json!({ "destination": at, "type": kind, "source": kind, "options": options });
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false,
            "user": { "uid": 0, "gid": 0 },
            "args": program,
            "env": ["PATH=/bin"],
            "cwd": "/",
            "capabilities": {
                "bounding": capabilities, "effective": capabilities, "permitted": capabilities,
            },
            "rlimits": [{ "type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024 }],
            "noNewPrivileges": true,
        },
        "root": { "path": format!("/data/{name}"), "readonly": false },
        "hostname": name,
        "mounts": [
            on("proc", "/proc", json!([])),
            on("tmpfs", "/dev", json!(["nosuid", "strictatime", "mode=755", "size=65536k"])),
            on("devpts", "/dev/pts", json!(["nosuid", "noexec", "newinstance", "ptmxmode=0666"])),
            on("tmpfs", "/dev/shm", json!(["nosuid", "noexec", "nodev", "mode=1777"])),
            on("mqueue", "/dev/mqueue", json!(["nosuid", "noexec", "nodev"])),
            on("sysfs", "/sys", json!(["nosuid", "noexec", "nodev", "ro"])),
            on("cgroup", "/sys/fs/cgroup", json!(["nosuid", "noexec", "nodev", "ro"])),
            on("tmpfs", "/tmp", json!(["nosuid", "nodev"])),
        ],
        "linux": {
            "cgroupsPath": format!("/{name}"),
            "resources": { "devices": [{ "allow": false, "access": "rwm" }] },
            "namespaces": namespaces,
            "seccomp": {
                "defaultAction": "SCMP_ACT_ALLOW",
                "architectures": ["SCMP_ARCH_X86_64"],
                "syscalls": [
                    { "names": ["kexec_load", "swapon", "mount"], "action": "SCMP_ACT_ERRNO" },
                ],
            },
            "maskedPaths": [
                "/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
                "/proc/timer_list", "/proc/sched_debug", "/proc/scsi", "/sys/firmware",
            ],
            "readonlyPaths": [
                "/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger",
            ],
        },
    })
}

/// Starts a container by runc.
fn run(name: &str, program: &[&str]) -> String {
    format!(
        "mkdir -p /data/bundle-{name}\n\
         cat > /data/bundle-{name}/config.json <<'END'\n{}\nEND\n\
         runc run -d --bundle /data/bundle-{name} --pid-file /run/{name}.pid {name} \
         </dev/null >/data/{name}.out 2>&1 || {{ cat /data/{name}.out; exit 1; }}\n",
        bundle(name, program)
    )
}

/// A host in which all of them are under way when it dies.
fn crash(lab: &Lab) -> Result<CachedDump> {
    let mut scenario = Scenario::named("process").context("no such scenario")?;
    scenario.name = "runc".into();
    scenario.process = None;
    // Who crashes the host has the only CPU: nobody else loses registers.
    scenario.hardware.cpus = 1;
    let mut extra = Extra::of(&lab.dir, &scenario)?;
    let program = lab.test_program("box")?;
    extra.luggage.push(("box".into(), program.clone()));
    extra.alive = Some(Box::new(|machine| {
        let prepare = "set -e; cp /dump/box /data/box; chmod 755 /data/box\n\
             for b in web app red; do mkdir -p /data/$b/bin /data/$b/proc /data/$b/sys /data/$b/dev \
             /data/$b/tmp /data/$b/run /data/$b/job; cp /data/box /data/$b/bin/box; done\n";
        let script = [
            prepare.to_owned(),
            format!("{SET_UP}\necho 6000 > /proc/sys/kernel/ns_last_pid\n"),
            run("web", &["/bin/box", "talker", "web"]),
            "cp /run/web.pid /data/web.pid\n".to_owned(),
            run("app", &["/bin/box", "idle", "app"]),
            // Above what runc itself needs in the container that is started anew.
            "runc exec app /bin/box note app || true\n\
             for i in 1 2 3 4 5 6 7 8; do runc exec app /bin/box note app || true; done\n\
             runc exec -d --pid-file /data/app.pid app /bin/box inmate app </dev/null >>/data/app.out 2>&1\n\
             /usr/bin/ip netns add red; /usr/bin/ip netns exec red /usr/bin/ip link set lo up\n\
             BASE=/data/red KEY=1 /usr/bin/ip netns exec red /data/box talker red </dev/null >/data/red.out 2>&1 &\n\
             echo $! > /data/red.pid; sleep 8\n\
             sync; sleep 2; tail -n 1 /data/*/job/log; runc list; cat /data/*.pid\n"
                .to_owned(),
        ];
        let said = machine.agent.run(&script.concat(), 5 * MINUTE)?;
        println!("{}{}", said.stdout, said.stderr);
        said.success("start").map(drop)
    }));
    let dump = lab.crash(scenario, extra)?;
    std::fs::remove_file(program)?;
    Ok(dump)
}

fn restore(host: &mut Rebooted, name: &str) -> Result<Value> {
    let command = format!("vmrestore --json process /dump/hostdump pid:$(cat /data/{name}.pid)");
    let output = host.run(&command, RESTORE)?;
    let document: Value = serde_json::from_str(&output.stdout)
        .with_context(|| format!("{}{}", output.stdout, output.stderr))?;
    let result = document["results"][0].clone();
    println!(
        "{name}: {} in {} ms, exit code {}; {}",
        result["verdict"], result["milliseconds"], output.code, result["error"]
    );
    for line in result["fidelity"].as_array().into_iter().flatten() {
        println!(
            "  {} {} {}: {}",
            line["level"], line["subject"], line["what"], line["how"]
        );
    }
    Ok(result)
}

/// The parent's PID, among the words of a line.
const PARENT: usize = 7;

/// How many lines it has; each counts one further and says the same of all else, but for the words
/// at `free`, which may be another since the restore.
fn unbroken(text: &str, free: &[usize]) -> Result<usize> {
    let lines: Vec<Vec<&str>> = text.lines().map(|l| l.split(' ').collect()).collect();
    let first = lines.first().context("it has said nothing")?;
    for (at, line) in lines.iter().enumerate() {
        ensure!(line.len() == 10, "line {at}: {line:?}");
        ensure!(line[3] == (at + 1).to_string(), "line {at}: {line:?}");
        for same in [1, 5, 7, 9] {
            let equal = line[same] == first[same] || free.contains(&same);
            ensure!(equal, "line {at}: {line:?}");
        }
    }
    Ok(lines.len())
}

/// It counts on; what only its memory knew.
fn lives(host: &mut Rebooted, name: &str, free: &[usize]) -> Result<String> {
    let log = format!("cat /data/{name}/job/log");
    let before = unbroken(&host.run(&log, MINUTE)?.stdout, free)?;
    let begin = Instant::now();
    loop {
        let text = host.run(&log, MINUTE)?.stdout;
        let lines = unbroken(&text, free).with_context(|| name.to_owned())?;
        if lines > before + 20 {
            println!("{name}: {lines} lines without gap or repeat");
            return Ok(text.split(' ').nth(1).context("no nonce")?.to_owned());
        }
        ensure!(begin.elapsed() < MINUTE, "{name} says nothing more: {text}");
        std::thread::sleep(Duration::from_secs(1));
    }
}

fn answers(host: &mut Rebooted, ask: &str, nonce: &str) -> Result<()> {
    let answer = host.run(ask, MINUTE)?;
    let text = format!("{}{}", answer.stdout, answer.stderr);
    ensure!(text.contains(&format!("nonce {nonce} ")), "{ask}: {text}");
    Ok(())
}

/// Its first process, below the PID 1 of a new one; runc rules over it.
fn first_process(host: &mut Rebooted) -> Result<()> {
    let result = restore(host, "web")?;
    ensure!(result["verdict"] == "refused", "{result}");
    let start = run("web", &["/bin/box", "idle", "web"]);
    host.run(&start, MINUTE)?.success("runc run")?;
    let result = restore(host, "web")?;
    ensure!(result["verdict"] == "running", "{result}");
    let nonce = lives(host, "web", &[])?;
    answers(host, "runc exec web /bin/box ask /run/inmate.sock", &nonce)?;
    answers(host, "/data/box tcp $(cat /run/web.pid)", &nonce)?;
    let pid = result["new_pid"].as_i64().context("no PID")?;
    // What it sees of /proc is as masked, and as little to be written, as the runtime has it.
    let looks = format!(
        "cat /proc/{pid}/cgroup; grep -E '^(NSpid|NoNewPrivs|Seccomp|CapBnd)' /proc/{pid}/status; \
         cd /proc/{pid}/root/proc; stat -c %t:%T kcore keys timer_list; cat 1/comm; \
         (echo 60 > sys/vm/swappiness) 2>&1; (echo h > sysrq-trigger) 2>&1; cd /; runc ps web"
    );
    let said = host.run(&looks, MINUTE)?.stdout;
    println!("{said}");
    let lines: Vec<&str> = said.lines().collect();
    ensure!(lines.first() == Some(&"0::/web"), "{said}");
    let ids: Vec<&str> = lines.get(1).context("no IDs")?.split('\t').collect();
    ensure!(ids.len() == 4 && ids[3] == "1", "{said}");
    for words in ["NoNewPrivs:\t1", "Seccomp:\t2", "\nbox\n"] {
        ensure!(said.contains(words), "{words:?}: {said}");
    }
    ensure!(said.matches("1:3\n").count() == 3, "{said}");
    let refused = said.to_lowercase().matches("read-only file system").count();
    ensure!(refused == 2, "{said}");
    ensure!(
        said.contains(&format!(" {pid} ")),
        "runc ps does not know it: {said}"
    );
    let paused = "runc pause web; sleep 1; wc -l < /data/web/job/log; sleep 3; \
         wc -l < /data/web/job/log; runc resume web";
    let said = host.run(paused, MINUTE)?.success("pause")?.stdout;
    let counts: Vec<&str> = said.split_ascii_whitespace().collect();
    ensure!(counts.len() == 2 && counts[0] == counts[1], "{said}");
    lives(host, "web", &[])?;
    let ended =
        format!("runc kill web KILL; sleep 2; ls -d /proc/{pid}; runc delete web; runc list");
    let said = host.run(&ended, MINUTE)?.stdout;
    ensure!(!said.contains("/proc/") && !said.contains("web"), "{said}");
    Ok(())
}

#[test]
#[ignore = "needs the lab: scripts/test --all"]
fn containers_of_a_runtime_come_back() -> Result<()> {
    let lab = Lab::prepare_with_installed(&PACKAGES)?;
    let kept = std::env::var_os("VMRESTORE_RUNC_CRASH").map(PathBuf::from);
    let dump = match &kept {
        Some(dir) => CachedDump::open(dir)?,
        None => crash(&lab)?,
    };
    println!("the dump is {}", dump.dir.display());
    let vmrestore = Path::new(env!("CARGO_BIN_EXE_vmrestore"));
    let mut host = lab.reboot(&dump, &Luggage::vmrestore(vmrestore))?;
    host.run(SET_UP, MINUTE)?.success("set up")?;

    first_process(&mut host)?;

    // One of `runc exec`, beside a PID 1 that is not restored, and becomes its parent.
    let start = run("app", &["/bin/box", "idle", "app"]);
    host.run(&start, MINUTE)?.success("runc run")?;
    let result = restore(&mut host, "app")?;
    ensure!(result["verdict"] == "running", "{result}");
    let nonce = lives(&mut host, "app", &[PARENT])?;
    answers(
        &mut host,
        "runc exec app /bin/box ask /run/inmate.sock",
        &nonce,
    )?;
    host.run("runc kill app KILL; sleep 2; runc delete app", MINUTE)?
        .success("delete")?;

    let result = restore(&mut host, "red")?;
    ensure!(result["verdict"] == "refused", "{result}");
    let add = "/usr/bin/ip netns add red; /usr/bin/ip netns exec red /usr/bin/ip link set lo up";
    host.run(add, MINUTE)?.success("ip netns")?;
    let result = restore(&mut host, "red")?;
    ensure!(result["verdict"] == "running", "{result}");
    // Its shell has ended before the crash.
    let nonce = lives(&mut host, "red", &[PARENT])?;
    let pid = result["new_pid"].as_i64().context("no PID")?;
    answers(&mut host, &format!("/data/box tcp {pid}"), &nonce)?;
    let said = host.run("/usr/bin/ip netns pids red", MINUTE)?.stdout;
    ensure!(said.trim() == pid.to_string(), "{said}");

    host.finish()?;
    if kept.is_none() {
        std::fs::remove_dir_all(&dump.dir)?;
    }
    Ok(())
}

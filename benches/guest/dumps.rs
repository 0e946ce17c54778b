//! The dumps: hosts of the lab with the bench's VMMs, that crash once and are kept.

use crate::Guest;
use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use vmrestore_lab::crash::Extra;
use vmrestore_lab::scenario::{DumpFile, MAIN_DUMP};
use vmrestore_lab::{Lab, Scenario};

/// Where the VMM is, in the host that dies and in the one that restores it.
pub const VMM: &str = "/tmp/vmrestore-bench/vmm";

/// A host that dies.
pub struct Host {
    /// Its directory, and the dump's name.
    pub name: &'static str,
    pub guests: &'static [Guest],
    /// makedumpfile's options in the capture kernel.
    options: &'static str,
}

const fn guest(pid: i32, mib: u64, huge: bool, period: u32) -> Guest {
    Guest {
        pid,
        mib,
        huge,
        period,
    }
}

/// Text of which no page is like another, but for the largest: these would not fit a small disk.
pub const HOSTS: [Host; 3] = [
    Host {
        name: "two",
        guests: &[
            guest(32001, 256, true, 4096),
            guest(32002, 2048, true, 4096),
        ],
        options: "-E -d 17",
    },
    Host {
        name: "eight",
        guests: &[guest(32003, 8192, true, 512)],
        options: "-l -d 17",
    },
    Host {
        name: "small-pages",
        guests: &[
            guest(32004, 256, false, 4096),
            guest(32005, 8192, false, 512),
        ],
        options: "-l -d 17",
    },
];

/// Builds the VMM, in the place where the dead host had it.
pub fn build_vmm() -> Result<PathBuf> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/guest/vmm.c");
    let program = PathBuf::from(VMM);
    fs::create_dir_all(program.parent().context("a directory")?)?;
    let built = Command::new("cc")
        .args(["-O2", "-static", "-o"])
        .args([&program, &source])
        .status()
        .context("a C compiler")?;
    ensure!(built.success(), "the VMM does not build");
    Ok(program)
}

/// Makes the dumps that are not in `dir` yet.
pub fn make(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir)?;
    for host in &HOSTS {
        let home = dir.join(host.name);
        if !home.join("done").exists() {
            crash(host, &home)?;
        }
    }
    let two = dir.join("two");
    if !two.join("lzo").exists() {
        let half = two.join("lzo.half");
        let mut makedumpfile = Lab::prepare()?.new_makedumpfile()?;
        makedumpfile.args(["--message-level", "0", "-l", "-d", "17"]);
        makedumpfile.arg(two.join("elf")).arg(&half);
        ensure!(makedumpfile.status()?.success(), "{makedumpfile:?}");
        fs::rename(half, two.join("lzo"))?;
    }
    Ok(())
}

fn crash(host: &'static Host, home: &Path) -> Result<()> {
    eprintln!("{}: a host that crashes", host.name);
    let _ = fs::remove_dir_all(home);
    fs::create_dir_all(home)?;
    let vmm = build_vmm()?;
    let touched: u64 = host.guests.iter().map(|guest| guest.mib).sum();
    let mut scenario = Scenario::named("process").context("no such scenario")?;
    scenario.name = format!("bench-{}", host.name);
    scenario.process = None;
    scenario.hardware.cpus = 1;
    scenario.hardware.memory_mib = u32::try_from(touched)? + 1024;
    scenario.random_ms = 0;
    scenario.dumps = vec![DumpFile::new(MAIN_DUMP, host.options)];
    let mut extra = Extra {
        tools: vec![("vmm".into(), vmm)],
        ..Extra::default()
    };
    extra.alive = Some(Box::new(|machine| {
        for guest in host.guests {
            let start = format!(
                "mkdir -p /tmp/vmrestore-bench && cp -p /tools/vmm {VMM}; cd /; \
                 echo {} > /proc/sys/kernel/ns_last_pid; \
                 setsid {VMM} {} {} {} </dev/null >/dev/null 2>&1 & echo $!; \
                 for i in $(seq 1200); do \
                 ls -l /proc/$!/fd | grep -q kvm-vcpu && break; sleep 0.5; done; sleep 5; \
                 grep -E 'VmRSS|AnonHuge' /proc/$!/status /proc/$!/smaps_rollup",
                guest.pid - 1,
                guest.mib,
                guest.pages(),
                guest.period,
            );
            let got = machine
                .agent
                .run(&start, Duration::from_secs(900))?
                .success(&start)?;
            eprintln!("{}", got.stdout);
            ensure!(
                got.stdout.lines().next() == Some(&guest.pid.to_string()),
                "PID {} is not {}",
                got.stdout,
                guest.pid
            );
        }
        Ok(())
    }));
    let dump = Lab::prepare()?.crash(scenario, extra)?;
    let name = match host.options.contains("-E") {
        true => "elf",
        false => "lzo",
    };
    // Over a file system's border, perhaps.
    let moved = Command::new("mv")
        .arg(dump.path())
        .arg(home.join(name))
        .status()?;
    ensure!(moved.success(), "the dump could not be moved");
    fs::remove_dir_all(&dump.dir)?;
    fs::write(home.join("done"), "")?;
    Ok(())
}

//! Programs and a guest whose memory zswap had, in each of its allocators and compressions.

use super::{FIND_DISK, MINUTE, PAGES, RESTORE, expect, take_modules, verify, vmrestore};
use anyhow::{Context, Result, ensure};
use vmrestore_lab::crash::Extra;
use vmrestore_lab::scenario::MAIN_DUMP;
use vmrestore_lab::{Lab, Luggage, Rebooted, Scenario, debian, flavours};

/// Swap disk. MiB.
const DISK_MIB: u64 = 192;
/// Lines that the guest must print after its restore.
const LINES: usize = 8;

/// What zswap keeps pages in, and how it compresses them. Each is a pool of its own, which stays when
/// another is chosen.
const ZSWAP: [(&str, &str); 10] = [
    ("zbud", "lzo"),
    ("zbud", "lzo-rle"),
    ("zsmalloc", "lzo"),
    ("zsmalloc", "lzo-rle"),
    ("zsmalloc", "lz4"),
    ("zsmalloc", "lz4hc"),
    ("zsmalloc", "zstd"),
    ("zsmalloc", "deflate"),
    ("z3fold", "lz4"),
    ("z3fold", "zstd"),
];

/// What the lab does not load by itself, in order.
const KVM: [&str; 2] = ["drivers/crypto/ccp/ccp", "arch/x86/kvm/kvm-amd"];

/// Its PID, and the name of what it says.
fn program(turn: usize) -> (usize, String) {
    let (pool, compressor) = ZSWAP[turn];
    (6601 + 100 * turn, format!("{pool}-{compressor}"))
}

/// Debian's kernel for clouds has no zswap; that for any machine has.
#[test]
#[ignore = "needs the lab: scripts/test"]
fn what_was_in_zswap_comes_back() -> Result<()> {
    let lab = Lab::prepare_generic()?;
    let mut scenario = Scenario::named("process").context("no such scenario")?;
    scenario.name = "zswap".into();
    scenario.process = None;
    let mut guest = flavours::microvm().numbered(1);
    guest.append = "lab.pause=1500".into();
    // This kernel's KVM needs more than the one for clouds.
    let names = KVM.map(|module| module.rsplit('/').next().unwrap_or(module));
    guest.host_setup = names
        .map(|name| format!("insmod /dump/{name}.ko; "))
        .concat()
        + "[ -e /dev/kvm ]";
    scenario.guests = vec![guest];
    scenario.warm_up = 6;
    scenario.hardware.cpus = 1;
    scenario.hardware.memory_mib = 1408;
    scenario.swap_mib = DISK_MIB;
    scenario.random_ms = 0;
    // It is larger than the one for clouds.
    scenario.hardware.crashkernel_mib = 224;
    let mut extra = Extra::of(&lab.dir, &scenario)?;
    extra
        .luggage
        .push(("swapped".into(), lab.test_program("swapped")?));
    let kernel = debian::Debian::generic(&lab.dir).kernel()?;
    let modules = take_modules(&kernel, &mut extra, 1)?;
    let mut kvm = Vec::new();
    for (module, name) in KVM.into_iter().zip(names) {
        let file = kernel.module(module)?.context("KVM is built in")?;
        kvm.push((format!("{name}.ko"), file));
    }
    extra.luggage.extend(kvm.clone());
    extra.alive = Some(Box::new(move |machine| {
        let agent = &mut machine.agent;
        let load = format!(
            "cp /dump/swapped /data/; {modules} {FIND_DISK}; mkswap $area && swapon $area || exit 1; \
             mount -t debugfs d /sys/kernel/debug; cd /sys/module/zswap/parameters || exit 1; \
             echo Y > enabled; echo 40 > max_pool_percent"
        );
        agent.run(&load, MINUTE)?.success(&load)?;
        let mut before = 0;
        for (turn, (pool, compressor)) in ZSWAP.into_iter().enumerate() {
            let (pid, name) = program(turn);
            let start = format!(
                "cd /sys/module/zswap/parameters; echo {pool} > zpool; echo {compressor} > compressor; \
                 [ $(cat zpool) = {pool} ] && [ $(cat compressor) = {compressor} ] || exit 1; \
                 echo {} > /proc/sys/kernel/ns_last_pid; \
                 setsid /data/swapped {pid} {PAGES} </dev/null >/data/swapped.{name} 2>&1 & echo $!",
                pid - 1
            );
            let got = agent.run(&start, MINUTE)?.success(&name)?;
            ensure!(
                got.stdout.trim() == pid.to_string(),
                "{name}: {}",
                got.stdout
            );
            let wait = format!(
                "for i in $(seq 100); do grep -q away /data/swapped.{name} && break; sleep 0.3; done; \
                 cat /data/swapped.{name} /sys/kernel/debug/zswap/stored_pages"
            );
            let got = agent.run(&wait, 2 * MINUTE)?.success("wait")?;
            let now: u64 = got.stdout.lines().last().unwrap_or_default().parse()?;
            println!("{name}: {} more in zswap", now.saturating_sub(before));
            // What is noise, and no more than that, goes to the disk.
            ensure!(now >= before + 800, "not in zswap: {}", got.stdout);
            before = now;
        }
        // The guest's go to the last of them, and what it has written to since to a new one.
        let push = "/data/swapped out 4711; echo lzo-rle > /sys/module/zswap/parameters/compressor; sync; \
                    /data/swapped out 4711; cat /sys/kernel/debug/zswap/stored_pages";
        let got = agent.run(push, 2 * MINUTE)?.success(push)?;
        println!("the guest, twice, and pages in zswap:\n{}", got.stdout);
        Ok(())
    }));
    let dump = lab.crash(scenario, extra)?;
    println!("the crash is in {}", dump.dir.display());
    let mut luggage = Luggage::vmrestore(vmrestore());
    luggage.dumps = kvm;
    luggage.dumps.push((MAIN_DUMP.into(), dump.path()));
    let mut host = lab.reboot(&dump, &luggage)?;
    let mut wrong = Vec::new();
    for turn in 0..ZSWAP.len() {
        let (pid, name) = program(turn);
        // Each is a row of its own: one that fails does not hide the others.
        if let Err(error) = comes_back(&mut host, u32::try_from(pid)?, &name) {
            wrong.push(format!("{name}: {error:#}"));
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    let show = packed(4711);
    let counts = host.run(&show, RESTORE)?.success(&show)?.stdout;
    println!("guest: {}", counts.trim());
    let output = host.run(&format!("vmrestore guests /dump/{MAIN_DUMP}"), RESTORE)?;
    ensure!(
        matches!(output.code, 0 | 8),
        "{}{}",
        output.stdout,
        output.stderr
    );
    println!("{}{}", output.stdout, output.stderr);
    host.follow_all()?;
    host.wait_new_lines("g1", LINES, 4 * MINUTE)?;
    for (name, verdict) in host.finish()?.verdicts(LINES) {
        ensure!(verdict.is_good(), "{name}: {verdict}");
        println!("{name}: {verdict}");
    }
    std::fs::remove_dir_all(&dump.dir)?;
    Ok(())
}

/// The program is restored, and finds all of its pages; most that were compressed came out of zswap.
fn comes_back(host: &mut Rebooted, pid: u32, name: &str) -> Result<()> {
    let show = packed(pid);
    let counts = host.run(&show, RESTORE)?.success(&show)?.stdout;
    let restore = format!("vmrestore process /dump/{MAIN_DUMP} pid:{pid}");
    expect(&host.run(&restore, RESTORE)?, 0, &[])?;
    verify(host, name, pid)?;
    println!(
        "{name}: compressed, of these to one whole page, on the disk: {}",
        counts.trim()
    );
    let count = counts.split(' ').next().and_then(|n| n.parse().ok());
    ensure!(count.unwrap_or(0) >= 400, "not out of zswap: {counts}");
    Ok(())
}

/// Says of how many pages of a process the dump has compressed bytes, of how many these are exactly one page
/// long, and how many are on the disk.
fn packed(pid: u32) -> String {
    format!(
        "vmrestore --json show /dump/{MAIN_DUMP} pid:{pid} > /tmp/show && \
         for what in '\"packed\"' '\"len\": *4096' '\"area\":'; do \
         printf '%s ' $(grep -oE \"$what\" /tmp/show | wc -l); done"
    )
}

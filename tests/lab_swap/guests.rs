//! Guests with part of their memory swapped out when their host died: on a disk, in a file, in zram.

use super::{FIND_DISK, MINUTE, RESTORE, expect, take_modules, vmrestore, wear};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::Path;
use vmrestore_lab::agent::Agent;
use vmrestore_lab::crash::Extra;
use vmrestore_lab::guest::Guest;
use vmrestore_lab::scenario::MAIN_DUMP;
use vmrestore_lab::{CachedDump, Lab, Luggage, Output, Rebooted, Scenario, debian, flavours};

/// Swap disk, swap file and zram, each. MiB.
const AREA_MIB: u64 = 96;
/// Pages of the program, twice, that wears an area out: nearly all of it.
const WEAR: u64 = 11000;
/// Lines that each guest must print after its restore.
const LINES: usize = 8;
/// Pages that must have been away at least, of each guest.
const AWAY: u64 = 2000;

/// Guests, and shell commands that make `$area` for each.
fn guests() -> Vec<(Guest, String)> {
    let file = format!(
        "dd if=/dev/zero of=/data/swapfile bs=1M count={AREA_MIB} && chmod 600 /data/swapfile; \
         area=/data/swapfile"
    );
    let zram = format!(
        "echo lz4 > /sys/block/zram0/comp_algorithm; echo {AREA_MIB}M > /sys/block/zram0/disksize; \
         area=/dev/zram0"
    );
    let places = [FIND_DISK.to_owned(), file, zram];
    // Private memory, in huge pages where it can be; shared; with a disk and two vCPUs.
    let flavours = [
        Some(flavours::microvm()),
        flavours::named("memfd"),
        Some(flavours::pc()),
    ];
    (1..)
        .zip(flavours.into_iter().flatten())
        .map(|(number, guest)| Guest {
            append: "lab.pause=1500".into(),
            ..guest.numbered(number)
        })
        .zip(places)
        .collect()
}

fn crash(lab: &Lab) -> Result<CachedDump> {
    let mut scenario = Scenario::named("process").context("no such scenario")?;
    scenario.name = "swapped-guests".into();
    scenario.process = None;
    scenario.guests = guests().into_iter().map(|(guest, _)| guest).collect();
    scenario.hardware.cpus = 1;
    scenario.hardware.memory_mib = 1280;
    scenario.swap_mib = AREA_MIB;
    scenario.warm_up = 6;
    scenario.random_ms = 0;
    let mut extra = Extra::of(&lab.dir, &scenario)?;
    extra
        .luggage
        .push(("swapped".into(), lab.test_program("swapped")?));
    let kernel = debian::Debian::new(&lab.dir).kernel()?;
    let modules = take_modules(&kernel, &mut extra, 1)?;
    extra.alive = Some(Box::new(move |machine| {
        let agent = &mut machine.agent;
        let load = format!("cp /dump/swapped /data/; {modules} [ -e /dev/zram0 ]");
        agent.run(&load, MINUTE)?.success(&load)?;
        for (priority, (guest, make)) in (1..).zip(guests()) {
            let push = format!(
                "{make}; mkswap $area && /data/swapped on $area {priority} && \
                 /data/swapped out {} && cat /proc/swaps",
                guest.pid
            );
            let got = agent.run(&push, 3 * MINUTE)?.success(&push)?;
            println!("{}:\n{}", guest.name, got.stdout);
        }
        // What they have touched since goes to zram, whosever it is.
        for (guest, _) in guests() {
            let push = format!("/data/swapped out {}", guest.pid);
            let got = agent.run(&push, 3 * MINUTE)?.success(&push)?;
            println!("{} again: {}", guest.name, got.stdout);
        }
        memory_gets_short(agent)
    }));
    lab.crash(scenario, extra)
}

/// A tmpfs file larger than what is free: the host dies while it swaps out whatever was used least.
fn memory_gets_short(agent: &mut Agent) -> Result<()> {
    let fill = "[ -d /run/fill ] || { mkdir /run/fill && mount -t tmpfs -o size=90% t /run/fill; }; \
                out() { awk '/pswpout/ {print $2}' /proc/vmstat; }; before=$(out); \
                free=$(awk '/MemAvailable/ {print int($2 / 1024)}' /proc/meminfo); \
                dd if=/dev/zero of=/run/fill/f bs=1M count=$((free + 24)) >/dev/null 2>&1 & \
                for i in $(seq 600); do [ $(out) -gt $((before + 1000)) ] && break; sleep 0.05; done; \
                grep -E 'MemFree|MemAvail|SwapCached|SwapFree|Writeback' /proc/meminfo; \
                cat /proc/swaps; grep pswp /proc/vmstat; grep ^Swap: /proc/4*11/smaps_rollup";
    let got = agent.run(fill, 2 * MINUTE)?.success(fill)?;
    println!("{}", got.stdout);
    Ok(())
}

/// What a restore of all says of each guest: its verdict, and why it was refused.
fn verdicts(output: &Output) -> Result<Vec<(String, String, String)>> {
    let answer: Value = serde_json::from_str(&output.stdout)
        .with_context(|| format!("{}{}", output.stdout, output.stderr))?;
    let results = answer["results"].as_array().context("no results")?;
    let text = |result: &Value, key: &str| result[key].as_str().unwrap_or_default().to_owned();
    Ok(results
        .iter()
        .map(|r| (text(r, "name"), text(r, "verdict"), text(r, "error")))
        .collect())
}

/// Those that run now say what they said, and go on.
fn judge(mut host: Rebooted, names: &[String]) -> Result<()> {
    host.follow_all()?;
    for name in names {
        host.wait_new_lines(name, LINES, 4 * MINUTE)?;
    }
    for (name, verdict) in host.finish()?.verdicts(LINES) {
        if names.contains(&name) {
            ensure!(verdict.is_good(), "{name}: {verdict}");
            println!("{name}: {verdict}");
        }
    }
    Ok(())
}

const RESTORE_ALL: &str = "vmrestore --json guests /dump/hostdump";

#[test]
#[ignore = "needs the lab: scripts/test"]
fn guests_whose_memory_was_swapped_out_come_back_or_are_refused() -> Result<()> {
    let lab = Lab::prepare()?;
    let kept = std::env::var_os("VMRESTORE_LAB_SWAPPED_GUESTS");
    let dump = match &kept {
        Some(dir) => CachedDump::open(Path::new(dir))?,
        None => crash(&lab)?,
    };
    println!("the crash is in {}", dump.dir.display());
    let on_disk = all_come_back(&lab, &dump).context("untouched areas")?;
    for name in ["g1", "g2"] {
        ensure!(
            on_disk.contains(name),
            "{name} has no page on the disk or in the file"
        );
    }
    used_by_this_boot(&lab, &dump, &on_disk).context("used by this boot")?;
    used_by_a_boot_in_between(&lab, &dump, &on_disk).context("used by a boot in between")?;
    if kept.is_none() {
        std::fs::remove_dir_all(&dump.dir)?;
    }
    Ok(())
}

/// Those that needed pages from the disk or the file.
fn all_come_back(lab: &Lab, dump: &CachedDump) -> Result<BTreeSet<String>> {
    let mut host = lab.reboot(dump, &Luggage::vmrestore(vmrestore()))?;
    // How much was away, as the dump has it.
    for guest in &dump.record.scenario.guests {
        let show = format!(
            "vmrestore --json show /dump/{MAIN_DUMP} pid:{} > /tmp/show || exit 1; \
             grep -oE '\"packed\"|\"filled\"|\"swap\": *\\{{' /tmp/show | sort | uniq -c; rm /tmp/show",
            guest.pid
        );
        let got = host.run(&show, RESTORE)?.success(&show)?;
        println!("{}: runs of pages away:\n{}", guest.name, got.stdout);
    }
    let check = format!("vmrestore check --quick /dump/{MAIN_DUMP}");
    let output = host.run(&check, RESTORE)?;
    println!("{}{}", output.stdout, output.stderr);
    let output = host.run(RESTORE_ALL, 2 * RESTORE)?;
    ensure!(
        matches!(output.code, 0 | 8),
        "{}{}",
        output.stdout,
        output.stderr
    );
    let answer: Value = serde_json::from_str(&output.stdout)?;
    let mut away = 0;
    let mut on_disk = BTreeSet::new();
    for result in answer["results"].as_array().context("no results")? {
        for line in result["fidelity"].as_array().into_iter().flatten() {
            let what = line["what"].as_str().unwrap_or_default();
            if let Some((pages, _)) = what.split_once(" pages from swap area") {
                println!("{}: {what}: {}", result["name"], line["how"]);
                away += pages.parse::<u64>()?;
                on_disk.insert(result["name"].as_str().unwrap_or_default().to_owned());
            }
        }
    }
    ensure!(
        away >= 2 * AWAY,
        "{away} pages were on the disk and in the file"
    );
    judge(host, &["g1".into(), "g2".into(), "g3".into()])?;
    Ok(on_disk)
}

/// Both areas were swapped to since the boot: whoever needs pages from them is refused, and nothing of it is
/// left; who does not comes back.
fn used_by_this_boot(lab: &Lab, dump: &CachedDump, on_disk: &BTreeSet<String>) -> Result<()> {
    let mut host = lab.reboot(dump, &Luggage::vmrestore(vmrestore()))?;
    let extract = format!("vmrestore extract /dump/{MAIN_DUMP} g2 -o /dump/out");
    expect(&host.run(&extract, RESTORE)?, 0, &[])?;
    let used = format!(
        "{FIND_DISK}; swapon $area && swapon /data/swapfile; {}",
        wear(2000)
    );
    println!("{}", host.run(&used, 3 * MINUTE)?.success(&used)?.stdout);
    let check = format!("vmrestore check --quick /dump/{MAIN_DUMP}");
    expect(&host.run(&check, RESTORE)?, 5, &["g1: swap", "used again"])?;
    let mut running = refused(&mut host, on_disk, "used again")?;
    // One that is in a directory by now needs no area.
    let output = host.run("vmrestore guests /dump/out g2", RESTORE)?;
    ensure!(
        matches!(output.code, 0 | 8),
        "{}{}",
        output.stdout,
        output.stderr
    );
    running.push("g2".into());
    judge(host, &running)
}

/// Restores all: who needs pages on a disk is refused, for this reason, and neither its VMM nor a VM is left.
/// The names of the others, which run.
fn refused(host: &mut Rebooted, on_disk: &BTreeSet<String>, reason: &str) -> Result<Vec<String>> {
    let output = host.run(RESTORE_ALL, 2 * RESTORE)?;
    println!("{}", output.stderr);
    let mut running = Vec::new();
    for (name, verdict, why) in verdicts(&output)? {
        println!("{name}: {verdict}: {why}");
        if !on_disk.contains(&name) {
            ensure!(verdict == "running", "{name} is {verdict}: {why}");
            running.push(name);
            continue;
        }
        ensure!(verdict == "refused", "{name} is {verdict}");
        for word in ["pages that were swapped out to", reason] {
            ensure!(
                why.contains(word),
                "{name}: it does not say {word:?}: {why}"
            );
        }
        let left = host.run(&format!("{}vmm", Guest::vmm_function(&name)), MINUTE)?;
        ensure!(left.code != 0, "{name} runs: {}", left.stdout);
    }
    let code = if running.is_empty() { 5 } else { 7 };
    ensure!(output.code == code, "exit code {}", output.code);
    let vms = "ls -l /proc/[0-9]*/fd 2>/dev/null | grep -c 'kvm-vm$'";
    let vms = host.run(vms, MINUTE)?.stdout;
    ensure!(
        vms.trim() == running.len().to_string(),
        "{vms} VMs, and {running:?}"
    );
    Ok(running)
}

/// A boot between the crash and this one has used the areas: this one's counters do not know, but slots differ
/// from what the dump knows of them.
fn used_by_a_boot_in_between(
    lab: &Lab,
    dump: &CachedDump,
    on_disk: &BTreeSet<String>,
) -> Result<()> {
    let luggage = Luggage::vmrestore(vmrestore());
    let mut host = lab.reboot(dump, &luggage)?;
    let used = format!(
        "{FIND_DISK}; swapon $area && swapon /data/swapfile; {}; swapoff /data/swapfile && swapoff $area",
        wear(2 * WEAR)
    );
    println!("{}", host.run(&used, 5 * MINUTE)?.success(&used)?.stdout);
    let disks = host.shut_down()?;
    let luggage = Luggage {
        after: Some(disks.clone()),
        ..luggage
    };
    let mut host = lab.reboot(dump, &luggage)?;
    std::fs::remove_dir_all(&disks)?;
    let running = refused(&mut host, on_disk, "is not what it was at the crash")?;
    judge(host, &running)
}

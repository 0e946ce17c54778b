//! Programs whose memory was swapped out to a disk, to a file and to zram, and areas that were used since.

use super::{FIND_DISK, MINUTE, PAGES, RESTORE, expect, take_modules, verify, vmrestore, wear};
use anyhow::{Context, Result, ensure};
use std::path::Path;
use vmrestore_lab::crash::Extra;
use vmrestore_lab::scenario::{DumpFile, MAIN_DUMP};
use vmrestore_lab::{CachedDump, Lab, Luggage, Scenario, debian};

/// Swap disk, with three partitions of 16 MiB. MiB.
const DISK_MIB: u64 = 50;

/// Partitions of Linux swap from 1, 17 and 33 MiB on, of a disk with the identifier 44332211.
const PARTITION: &str = r"{ printf '\021\042\063\104\000\000'; \
     printf '\000\000\000\000\202\000\000\000\000\010\000\000\000\200\000\000'; \
     printf '\000\000\000\000\202\000\000\000\000\210\000\000\000\200\000\000'; \
     printf '\000\000\000\000\202\000\000\000\000\010\001\000\000\200\000\000'; \
     head -c 16 /dev/zero; printf '\125\252'; } | dd of=$area bs=1 seek=440 conv=notrunc && \
     blockdev --rereadpt $area";

/// The second partition as an encrypted device, as a host has it whose swap has a key of its own.
const DECRYPT: &str = "crypt() { echo \"0 32768 crypt aes-cbc-plain64 $1 0 ${area}2 0\" | \
     dmsetup --noudevsync --noudevrules create swap --uuid CRYPT-PLAIN-swap && dmsetup mknodes && \
     area=/dev/mapper/swap; }; crypt";
const KEY: &str = "000102030405060708090a0b0c0d0e0f";
const OTHER_KEY: &str = "f00102030405060708090a0b0c0d0e0f";

/// What a program's pages went to.
struct Away {
    name: &'static str,
    pid: u32,
    /// Shell commands that make `$area`, ready for swapon.
    make: &'static str,
}

static AWAY: [Away; 8] = [
    Away {
        name: "partition",
        pid: 6001,
        make: "find_disk; area=${area}1",
    },
    Away {
        name: "file",
        pid: 6101,
        make: "dd if=/dev/zero of=/data/swapfile bs=1M count=12 && chmod 600 /data/swapfile; \
               area=/data/swapfile",
    },
    Away {
        name: "lzo-rle",
        pid: 6201,
        make: "area=/dev/zram0",
    },
    Away {
        name: "lzo",
        pid: 6301,
        make: "area=/dev/zram1",
    },
    Away {
        name: "lz4",
        pid: 6401,
        make: "area=/dev/zram2",
    },
    Away {
        name: "zstd",
        pid: 6501,
        make: "area=/dev/zram3",
    },
    Away {
        name: "encrypted",
        pid: 6601,
        make: "find_disk; decrypt",
    },
    // Pages that zram has written to its backing device.
    Away {
        name: "written-back",
        pid: 6701,
        make: "area=/dev/zram4",
    },
];

/// A crash of a host with six programs, the memory of each swapped out to another place.
fn crash(lab: &Lab) -> Result<CachedDump> {
    let mut scenario = Scenario::named("process").context("no such scenario")?;
    scenario.name = "swap".into();
    scenario.process = None;
    scenario.swap_mib = DISK_MIB;
    scenario.dumps = vec![DumpFile::new(MAIN_DUMP, "-c -d 17")];
    scenario.random_ms = 0;
    let mut extra = Extra::of(&lab.dir, &scenario)?;
    extra
        .luggage
        .push(("swapped".into(), lab.test_program("swapped")?));
    let kernel = debian::Debian::new(&lab.dir).kernel()?;
    let modules = take_modules(&kernel, &mut extra, 5)?;
    extra.alive = Some(Box::new(move |machine| {
        let agent = &mut machine.agent;
        let mut load = format!("cp /dump/swapped /data/; {modules} set -e; ");
        for (number, algorithm) in ["lzo-rle", "lzo", "lz4", "zstd"].iter().enumerate() {
            load += &format!(
                "echo {algorithm} > /sys/block/zram{number}/comp_algorithm; \
                 echo 16M > /sys/block/zram{number}/disksize; "
            );
        }
        load += &format!(
            "{FIND_DISK}; {PARTITION}; [ -e ${{area}}3 ]; \
             echo ${{area}}3 > /sys/block/zram4/backing_dev; echo 16M > /sys/block/zram4/disksize"
        );
        agent.run(&load, MINUTE)?.success(&load)?;
        for (turn, away) in AWAY.iter().enumerate() {
            let make = away
                .make
                .replace("find_disk", FIND_DISK)
                .replace("decrypt", &format!("{DECRYPT} {KEY}"));
            let start = format!(
                "{make}; mkswap $area && /data/swapped on $area {} || exit 1; \
                 echo {} > /proc/sys/kernel/ns_last_pid; \
                 setsid /data/swapped {} {PAGES} </dev/null >/data/swapped.{} 2>&1 & echo $!",
                turn + 1,
                away.pid - 1,
                away.pid,
                away.name,
            );
            let got = agent.run(&start, MINUTE)?.success(away.name)?;
            let pid = got.stdout.lines().last().unwrap_or_default().to_owned();
            ensure!(pid == away.pid.to_string(), "{}: {}", away.name, got.stdout);
            let wait = format!(
                "for i in $(seq 100); do grep -q away /data/swapped.{0} && break; sleep 0.3; done; \
                 cat /data/swapped.{0}; cat /proc/swaps; grep Swap /proc/{1}/smaps_rollup",
                away.name, away.pid
            );
            let got = agent.run(&wait, 2 * MINUTE)?.success("wait")?;
            println!("{}:\n{}", away.name, got.stdout);
            let used = got.stdout.lines().filter(|l| l.starts_with('/')).any(|l| {
                let words: Vec<&str> = l.split_whitespace().collect();
                // What was made of it last, by its priority.
                words.get(4).copied() == Some(&(turn + 1).to_string())
                    && words.get(3).and_then(|n| n.parse().ok()).unwrap_or(0) > PAGES * 4
            });
            ensure!(used, "{}: not swapped out\n{}", away.name, got.stdout);
        }
        let write_back = "cd /sys/block/zram4; echo all > idle; echo huge > writeback; \
                          echo idle > writeback; cat bd_stat; [ $(awk '{print $1}' bd_stat) -gt 500 ]";
        let got = agent.run(write_back, 2 * MINUTE)?.success(write_back)?;
        println!("zram4's backing device: {}", got.stdout);
        // Pages that were written stay in the swap cache until memory is short.
        let press = "for i in $(seq 20); do \
             [ $(awk '/SwapCached/ {print $2}' /proc/meminfo) -lt 200 ] && break; \
             m=$(awk '/MemFree/ {print int($2 / 1024)}' /proc/meminfo); \
             dd if=/dev/zero of=/dev/null bs=$((m + 30))M count=1 2>/dev/null; done; \
             grep -E 'SwapCached|MemFree' /proc/meminfo; cat /proc/swaps; \
             [ $(awk '/SwapCached/ {print $2}' /proc/meminfo) -lt 1000 ]";
        let got = agent.run(press, 5 * MINUTE)?.success("memory gets short")?;
        println!("{}", got.stdout);
        // The cache has dropped the areas' headers by now. The devices' are read again, the file's is not:
        // of that no more than its length is known after the crash.
        let header = format!(
            "{FIND_DISK}; for area in ${{area}}1 /dev/mapper/swap; do \
             dd if=$area of=/dev/null bs=4096 count=1; done; sync"
        );
        agent.run(&header, MINUTE)?.success(&header)?;
        Ok(())
    }));
    lab.crash(scenario, extra)
}

/// One crash serves all tests; `$VMRESTORE_LAB_SWAP` names one that was kept.
fn dump(lab: &Lab) -> Result<CachedDump> {
    match std::env::var_os("VMRESTORE_LAB_SWAP") {
        Some(dir) => CachedDump::open(Path::new(&dir)),
        None => crash(lab),
    }
}

#[test]
#[ignore = "needs the lab: scripts/test"]
fn what_was_swapped_out_comes_back_and_what_was_used_since_is_refused() -> Result<()> {
    let lab = Lab::prepare()?;
    let dump = dump(&lab)?;
    println!("the crash is in {}", dump.dir.display());
    let in_memory = all_come_back(&lab, &dump)?;
    used_again(&lab, &dump, in_memory)?;
    if std::env::var_os("VMRESTORE_LAB_SWAP").is_none() {
        std::fs::remove_dir_all(&dump.dir)?;
        std::fs::remove_file(lab.dir.join(format!("swapped-{}", std::process::id())))?;
    }
    Ok(())
}

/// With what opens the encrypted area.
fn luggage(lab: &Lab, dump: &CachedDump) -> Result<Luggage> {
    let module = debian::Debian::new(&lab.dir)
        .kernel()?
        .module("drivers/md/dm-crypt")?
        .context("dm-crypt is built in")?;
    let mut luggage = Luggage::vmrestore(vmrestore());
    luggage.dumps = vec![
        ("dm-crypt.ko".into(), module),
        (MAIN_DUMP.into(), dump.path()),
    ];
    Ok(luggage)
}

/// Each program is restored on a host that has not touched its swap, and finds all of its pages. One of those
/// that needed no area on a disk. (A CPU keeps a few slots of the area before at hand, so most of a program's
/// pages are where they ought to be, not always all.)
fn all_come_back(lab: &Lab, dump: &CachedDump) -> Result<&'static Away> {
    let mut host = lab.reboot(dump, &luggage(lab, dump)?)?;
    let mut in_memory = None;
    for away in &AWAY {
        let restore = format!("vmrestore process /dump/{MAIN_DUMP} pid:{}", away.pid);
        if away.name == "encrypted" {
            // Nobody has opened it yet.
            let output = host.run(&restore, RESTORE)?;
            expect(
                &output,
                5,
                &["no device of this host is dm device CRYPT-PLAIN-swap"],
            )?;
            let open = format!("insmod /dump/dm-crypt.ko; {FIND_DISK}; {DECRYPT} {KEY}");
            host.run(&open, MINUTE)?.success(&open)?;
        }
        let output = host.run(&restore, RESTORE)?;
        let words: &[&str] = match away.name {
            "partition" | "encrypted" => &["this boot has not had it on", ": UUID "],
            "file" => &["this boot has not had it on", "of the same 3072 pages"],
            "written-back" => &["backing zram4", "this boot has written nothing to it"],
            _ => &[],
        };
        expect(&output, 0, words).context(away.name)?;
        println!("{}{}", output.stdout, output.stderr);
        if !output.stdout.contains("pages from swap area") {
            in_memory.get_or_insert(away);
        }
        verify(&mut host, away.name, away.pid)?;
    }
    host.finish()?;
    in_memory.context("none was in memory alone")
}

/// The new boot turns the areas on, then uses them, then makes them anew.
fn used_again(lab: &Lab, dump: &CachedDump, zram: &Away) -> Result<()> {
    let mut host = lab.reboot(dump, &luggage(lab, dump)?)?;
    let restore = |away: &Away, more: &str| {
        format!(
            "vmrestore process /dump/{MAIN_DUMP} pid:{} {more}",
            away.pid
        )
    };
    let [disk, file, .., encrypted, backed] = &AWAY;
    // Pages that are in a directory by now are needed no more where they were.
    let extract = format!(
        "vmrestore extract /dump/{MAIN_DUMP} pid:{} pid:{} -o /dump/out",
        disk.pid, file.pid
    );
    expect(&host.run(&extract, RESTORE)?, 0, &[])?;
    // On, and nothing swapped out: as good as off.
    let on = format!("{FIND_DISK}; swapon ${{area}}1 && swapon /data/swapfile && cat /proc/swaps");
    host.run(&on, MINUTE)?.success(&on)?;
    for (away, words) in [
        (disk, "written nothing to it"),
        (file, "swapped nothing out yet"),
    ] {
        let output = host.run(&restore(away, "--dry-run"), RESTORE)?;
        expect(&output, 0, &[words])?;
    }
    // Used.
    let used = host.run(&wear(400), 2 * MINUTE)?.success("wear")?;
    println!("{}", used.stdout);
    for away in [disk, file] {
        let output = host.run(&restore(away, ""), RESTORE)?;
        expect(
            &output,
            5,
            &["swapped out to", "it is on", "used again", "hint: "],
        )?;
        println!("{}", output.stderr);
    }
    // Off again: the log still knows.
    let off = format!("{FIND_DISK}; swapoff ${{area}}1 && swapoff /data/swapfile");
    host.run(&off, MINUTE)?.success(&off)?;
    let output = host.run(&restore(disk, ""), RESTORE)?;
    expect(&output, 5, &["it was on", "used again"])?;
    // Nothing is left of a process that was refused, and what was in memory needs no area.
    host.run(&format!("[ ! -e /proc/{} ]", disk.pid), MINUTE)?
        .success("nothing is left")?;
    let output = host.run(&restore(zram, ""), RESTORE)?;
    expect(&output, 0, &[])?;
    verify(&mut host, zram.name, zram.pid)?;
    // Opened with another key, it is noise, and then has a header of its own.
    let noise = format!("insmod /dump/dm-crypt.ko; {FIND_DISK}; {DECRYPT} {OTHER_KEY}");
    host.run(&noise, MINUTE)?.success(&noise)?;
    let output = host.run(&restore(encrypted, "--force"), RESTORE)?;
    expect(&output, 5, &["no swap signature"])?;
    host.run("mkswap /dev/mapper/swap", MINUTE)?
        .success("mkswap")?;
    let output = host.run(&restore(encrypted, "--force"), RESTORE)?;
    expect(&output, 5, &["made anew"])?;
    // A few bytes, somewhere.
    let touch =
        format!("{FIND_DISK}; echo x | dd of=${{area}}3 bs=4096 seek=4000 conv=notrunc,fsync");
    host.run(&touch, MINUTE)?.success(&touch)?;
    let output = host.run(&restore(backed, ""), RESTORE)?;
    expect(
        &output,
        5,
        &[
            "backing zram4",
            "sectors of it were written since",
            "hint: ",
        ],
    )?;
    // The file is gone, and the partition is made anew.
    host.run("rm /data/swapfile", MINUTE)?.success("rm")?;
    let output = host.run(&restore(file, "--force"), RESTORE)?;
    expect(&output, 5, &["/data/swapfile", "mount the file system"])?;
    let anew = format!("{FIND_DISK}; mkswap ${{area}}1");
    host.run(&anew, MINUTE)?.success(&anew)?;
    let output = host.run(&restore(disk, "--force"), RESTORE)?;
    expect(&output, 5, &["made anew"])?;
    let output = host.run("vmrestore process /dump/out", RESTORE)?;
    expect(&output, 0, &["this boot has not had it on"])?;
    for away in [disk, file] {
        verify(&mut host, away.name, away.pid)?;
    }
    host.finish()?;
    Ok(())
}

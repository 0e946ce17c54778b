//! The claim itself: a real host panics, reboots, and what ran on it goes on.
//!
//! Needs the lab (docs/lab.md): `scripts/test` sets it up and runs these with
//! `--include-ignored`. What the restored guests and the program print is
//! judged by the lab, which shares no code with vmrestore.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::path::Path;
use std::time::Duration;
use vmrestore_lab::recode::{Codec, recode};
use vmrestore_lab::scenario::WHOLE_DUMP;
use vmrestore_lab::{Lab, Luggage, Output, Rebooted, Scenario};

const MINUTE: Duration = Duration::from_secs(60);
const RESTORE: Duration = Duration::from_secs(300);
/// Lines that each guest and the program must print after its restore.
const LINES: usize = 20;

fn reboot(scenario: &str) -> Result<(Rebooted, vmrestore_lab::CachedDump)> {
    let lab = Lab::prepare()?;
    let scenario = Scenario::named(scenario).context("no such scenario")?;
    let dump = lab.dump(&scenario)?;
    let vmrestore = Path::new(env!("CARGO_BIN_EXE_vmrestore"));
    Ok((lab.reboot(&dump, &Luggage::vmrestore(vmrestore))?, dump))
}

/// Restored, perhaps with losses that were named (exit code 8).
fn restored(output: Output, what: &str) -> Result<Output> {
    ensure!(
        output.code == 0 || output.code == 8,
        "{what}: exit code {}\n{}{}",
        output.code,
        output.stdout,
        output.stderr
    );
    Ok(output)
}

/// The exit code, and a `hint:` on stderr.
fn refused(host: &mut Rebooted, command: &str, code: i32) -> Result<String> {
    let output = host.run(command, 2 * MINUTE)?;
    ensure!(
        output.code == code,
        "{command}: exit code {} and not {code}\n{}{}",
        output.code,
        output.stdout,
        output.stderr
    );
    ensure!(
        output.stderr.contains("\nhint: "),
        "{command}: no hint\n{}",
        output.stderr
    );
    Ok(output.stderr)
}

/// Everything that a refused restore must leave as it is: files, processes.
fn fingerprint(host: &mut Rebooted) -> Result<String> {
    let files = "find /data -type f -not -path '*/vmrestore/*' | sort | xargs md5sum; \
                 find /data -type f -not -path '*/vmrestore/*' | xargs stat -c '%n %Y %s' | sort; \
                 ls /run";
    let files = host.run(files, MINUTE)?.success("fingerprint")?.stdout;
    let processes = host.run("ps | grep -c -e '[q]emu-system' -e '[l]ab-process'", MINUTE)?;
    Ok(files + &processes.stdout)
}

/// Nothing has changed since `before`; else: the lines that differ.
fn unchanged(host: &mut Rebooted, before: &str) -> Result<()> {
    let after = fingerprint(host)?;
    let gone = before.lines().filter(|l| !after.contains(l));
    let new = after.lines().filter(|l| !before.contains(l));
    let differ: Vec<&str> = gone.chain(new).collect();
    ensure!(
        after == before,
        "what should change nothing has changed:\n{}",
        differ.join("\n")
    );
    Ok(())
}

fn judged_good(host: Rebooted, lines: usize) -> Result<()> {
    for (name, verdict) in host.finish()?.verdicts(lines) {
        ensure!(verdict.is_good(), "{name}: {verdict}");
        println!("{name}: {verdict}");
    }
    Ok(())
}

#[test]
#[ignore = "needs the lab: scripts/test"]
fn guests_and_a_process_go_on_after_the_host_has_died() -> Result<()> {
    let (mut host, dump) = reboot("main")?;

    let list = host
        .run("vmrestore --json list /dump/hostdump", MINUTE)?
        .success("list")?;
    let list: Value = serde_json::from_str(&list.stdout)?;
    let names: Vec<&str> = list["guests"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|g| g["name"].as_str())
        .collect();
    ensure!(names == ["g1", "g2"], "list names {names:?}");
    host.run("vmrestore check /dump/hostdump", MINUTE)?
        .success("check")?;

    // A dry run and a strict one (the clock is reconstructed at the least)
    // leave everything as it was.
    let before = fingerprint(&mut host)?;
    let dry = host.run("vmrestore guests /dump/hostdump --dry-run", RESTORE)?;
    restored(dry, "dry run")?;
    refused(&mut host, "vmrestore guests /dump/hostdump --strict", 5)?;
    unchanged(&mut host, &before)?;

    let guests = host.run("vmrestore --json guests /dump/hostdump", RESTORE)?;
    let report: Value = serde_json::from_str(&restored(guests, "guests")?.stdout)?;
    for result in report["results"].as_array().into_iter().flatten() {
        ensure!(result["verdict"] == "running", "{result}");
        ensure!(result["pid"] == result["new_pid"], "{result}");
    }
    let process = host.run("vmrestore process /dump/hostdump pid:4911", RESTORE)?;
    restored(process, "process")?;

    host.follow_all()?;
    for name in dump.names() {
        host.wait_new_lines(&name, LINES, 3 * MINUTE)?;
    }
    for guest in ["g1", "g2"] {
        let status = host
            .qmp(guest, &["query-status"])?
            .success("query-status")?;
        ensure!(
            status.stdout.contains("\"running\""),
            "{guest}: {}",
            status.stdout
        );
    }
    let again = refused(&mut host, "vmrestore guests /dump/hostdump", 5)?;
    ensure!(again.contains("restored already"), "{again}");

    // The VMMs are in their users' hands again.
    host.qmp("g1", &["quit"])?.success("quit")?;
    host.qmp("g2", &["system_powerdown"])?
        .success("system_powerdown")?;
    let gone =
        "for i in $(seq 60); do ps | grep -q '[q]emu-system' || exit 0; sleep 1; done; exit 1";
    host.run(gone, 2 * MINUTE)?
        .success("both VMMs end when they are told to")?;
    judged_good(host, LINES)
}

/// The guests and the program run before their memory is there, and cannot tell.
#[test]
#[ignore = "needs the lab: scripts/test"]
fn they_go_on_while_their_memory_arrives() -> Result<()> {
    let (mut host, dump) = reboot("main")?;
    for command in ["guests", "process"] {
        let who = if command == "process" { "pid:4911" } else { "" };
        let command = format!("vmrestore --json {command} /dump/hostdump {who} --memory lazy");
        let output = restored(host.run(&command, RESTORE)?, &command)?;
        let report: Value = serde_json::from_str(&output.stdout)?;
        for result in report["results"].as_array().into_iter().flatten() {
            ensure!(result["verdict"] == "running", "{result}");
            let memory = &result["memory"];
            println!(
                "{}: {} ms, {memory}",
                result["name"], result["milliseconds"]
            );
            ensure!(
                memory["how"] == "lazy" && memory["arrived_bytes"] == memory["lazy_bytes"],
                "{memory}"
            );
        }
    }
    go_on(host, &dump)
}

#[test]
#[ignore = "needs the lab: scripts/test"]
fn what_cannot_be_restored_is_refused_and_nothing_is_changed() -> Result<()> {
    let (mut host, _) = reboot("formats")?;
    let prepare = "cd /dump && head -c $(($(stat -c %s hostdump) / 2)) hostdump > cut && \
                   echo 'no dump' > text && : > empty";
    host.run(prepare, MINUTE)?.success("bad files")?;
    let before = fingerprint(&mut host)?;

    refused(&mut host, "vmrestore guests /dump/d31", 5)?;
    refused(&mut host, "vmrestore process /dump/d31 pid:4911", 5)?;
    let cut = host.run("vmrestore guests /dump/cut", MINUTE)?;
    ensure!(
        [3, 5].contains(&cut.code) && cut.stderr.contains("hint: "),
        "cut: {}",
        cut.stderr
    );
    refused(&mut host, "vmrestore guests /dump/text", 3)?;
    refused(&mut host, "vmrestore guests /dump/empty", 3)?;
    refused(&mut host, "vmrestore guests /dump/absent", 3)?;
    refused(
        &mut host,
        "vmrestore guests /dump/hostdump no-such-guest",
        4,
    )?;
    refused(&mut host, "vmrestore process /dump/hostdump pid:999999", 4)?;
    let user = "su -s /bin/sh nobody -c 'vmrestore guests /dump/hostdump' || exit $?";
    let user = host.run(user, MINUTE)?;
    ensure!(user.code != 0, "a user without rights restored a guest");
    unchanged(&mut host, &before)?;

    // A disk that somebody has used since.
    host.run("sleep 1; echo x >> /data/g1.serial", MINUTE)?
        .success("change")?;
    let before = fingerprint(&mut host)?;
    let changed = refused(&mut host, "vmrestore guests /dump/hostdump", 5)?;
    ensure!(changed.contains("/data/g1.serial"), "{changed}");
    unchanged(&mut host, &before)?;
    // The program's own files are as they were: it is another matter.
    restored(
        host.run("vmrestore process /dump/hostdump pid:4911", RESTORE)?,
        "process",
    )?;
    host.finish().map(drop)
}

#[test]
#[ignore = "needs the lab: scripts/test"]
fn every_format_says_the_same_and_brings_the_same_back() -> Result<()> {
    let (mut host, dump) = reboot("formats")?;
    let list = |host: &mut Rebooted, what: &str| -> Result<String> {
        Ok(host.run(what, MINUTE)?.success(what)?.stdout)
    };
    let whole = list(&mut host, "vmrestore list /dump/hostdump")?;
    for file in ["lzo", "elf", "flat-elf", "vmcore", "- < /dump/hostdump"] {
        let other = list(&mut host, &format!("cd /dump && vmrestore list {file}"))?;
        ensure!(other == whole, "{file} lists\n{other}and zlib\n{whole}");
    }
    // The emulated disk takes a few MB each second: the smallest that is whole.
    let piped = "cat /dump/hostdump | vmrestore list - --spool-dir /dump";
    let piped = host.run(piped, RESTORE)?.success(piped)?.stdout;
    ensure!(piped == whole, "a pipe lists\n{piped}and zlib\n{whole}");
    // By way of files, from the format that has least to say about itself.
    let extract = "vmrestore extract /dump/flat-elf g1 pid:4911 -o /dump/out";
    host.run(extract, RESTORE)?.success("extract")?;
    restored(
        host.run("vmrestore restore /dump/out --paused", RESTORE)?,
        "restore",
    )?;
    let states = "for p in 4711 4911; do grep State: /proc/$p/status; done";
    let states = host.run(states, MINUTE)?.success("states")?.stdout;
    ensure!(states.matches("stopped").count() == 2, "--paused: {states}");
    host.run("kill -CONT 4711 4911", MINUTE)?
        .success("continue")?;
    go_on(host, &dump)
}

/// All guests and the program print new lines, and all that they have printed
/// is right.
fn go_on(mut host: Rebooted, dump: &vmrestore_lab::CachedDump) -> Result<()> {
    host.follow_all()?;
    for name in dump.names() {
        host.wait_new_lines(&name, LINES, 3 * MINUTE)?;
    }
    judged_good(host, LINES)
}

/// Dumps of the same crash that another makedumpfile has made of `/proc/vmcore`:
/// the guest comes back from a split one with zstd, its parts named in any
/// order, and the program from one with snappy pages.
#[test]
#[ignore = "needs the lab: scripts/test"]
fn a_guest_comes_back_from_a_split_zstd_dump_and_a_process_from_snappy() -> Result<()> {
    let lab = Lab::prepare()?;
    let dump = lab.dump(&Scenario::named("formats").context("no such scenario")?)?;
    let work = lab.new_run();
    std::fs::create_dir_all(&work)?;
    let names = ["part1", "part2", "part3"];
    let mut split = lab.new_makedumpfile()?;
    split.args(["--message-level", "4", "-f", "-z", "-d", "17"]);
    split.args(["--split", "--splitblock-size", "16"]);
    split.arg(dump.file(WHOLE_DUMP));
    split.args(names.map(|name| work.join(name)));
    let output = split.output()?;
    ensure!(output.status.success(), "{split:?}: {output:?}");
    recode(&dump.path(), &work.join("snappy"), Codec::Snappy)?;

    let mut luggage = Luggage::vmrestore(Path::new(env!("CARGO_BIN_EXE_vmrestore")));
    for name in ["part1", "part2", "part3", "snappy"] {
        luggage.dumps.push((name.into(), work.join(name)));
    }
    let mut host = lab.reboot(&dump, &luggage)?;
    std::fs::remove_dir_all(&work)?;
    let alone = refused(&mut host, "vmrestore guests /dump/part2", 3)?;
    ensure!(alone.contains("--part"), "{alone}");
    let missing = "vmrestore guests /dump/part3 --part /dump/part1";
    let missing = host.run(missing, RESTORE)?;
    ensure!(
        missing.code == 3 || missing.code == 5,
        "a part is missing: exit code {}\n{}",
        missing.code,
        missing.stderr
    );
    let guests = "cd /dump && vmrestore guests part3 --part part1 --part part2";
    restored(host.run(guests, RESTORE)?, "guests")?;
    let process = "vmrestore process /dump/snappy pid:4911";
    restored(host.run(process, RESTORE)?, "process")?;
    go_on(host, &dump)
}

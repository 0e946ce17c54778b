//! Guests whose storage is of every kind: they come back with every write that
//! they were told of, and never onto a disk that moved on.
//!
//! Needs the lab (docs/lab.md): `scripts/test` sets it up and runs these with
//! `--include-ignored`.

use anyhow::{Context, Result, ensure};
use std::path::Path;
use std::time::Duration;
use vmrestore_lab::guest::Guest;
use vmrestore_lab::{CachedDump, Lab, Luggage, Output, Rebooted, Scenario};

const MINUTE: Duration = Duration::from_secs(60);
const RESTORE: Duration = Duration::from_secs(600);
/// Lines that each guest must print after its restore.
const LINES: usize = 8;

fn reboot(scenario: &str) -> Result<(Rebooted, CachedDump)> {
    let lab = Lab::prepare()?;
    let scenario = Scenario::named(scenario).context("no such scenario")?;
    let dump = lab.dump(&scenario)?;
    let vmrestore = Path::new(env!("CARGO_BIN_EXE_vmrestore"));
    Ok((lab.reboot(&dump, &Luggage::vmrestore(vmrestore))?, dump))
}

fn restored(output: &Output) -> Result<()> {
    ensure!(
        matches!(output.code, 0 | 8),
        "exit code {}\n{}{}",
        output.code,
        output.stdout,
        output.stderr
    );
    Ok(())
}

/// All guests print new lines, and all that they ever printed and wrote is right.
fn all_go_on(mut host: Rebooted, dump: &CachedDump) -> Result<()> {
    host.follow_all()?;
    for name in dump.names() {
        host.wait_new_lines(&name, LINES, 5 * MINUTE)?;
    }
    for (name, verdict) in host.finish()?.verdicts(LINES) {
        ensure!(verdict.is_good(), "{name}: {verdict}");
        println!("{name}: {verdict}");
    }
    Ok(())
}

fn every_guest_of(scenario: &str) -> Result<()> {
    let (mut host, dump) = reboot(scenario)?;
    restored(&host.run("vmrestore guests /dump/hostdump", RESTORE)?)?;
    let again = host.run("vmrestore guests /dump/hostdump", RESTORE)?;
    ensure!(
        again.code == 5 && again.stderr.contains("restored already"),
        "a second time: exit code {}\n{}",
        again.code,
        again.stderr
    );
    all_go_on(host, &dump)
}

#[test]
#[ignore = "needs the lab: scripts/test"]
fn threads_native_aio_iothreads_and_writethrough() -> Result<()> {
    every_guest_of("disks")
}

#[test]
#[ignore = "needs the lab: scripts/test"]
fn scsi_qcow2_snapshots_and_several_disks() -> Result<()> {
    every_guest_of("disks-images")
}

#[test]
#[ignore = "needs the lab: scripts/test"]
fn images_on_xfs() -> Result<()> {
    every_guest_of("disks-xfs")
}

/// The devices have other names after the reboot, and nothing is forced. One
/// that somebody has written to since is refused.
#[test]
#[ignore = "needs the lab: scripts/test"]
fn block_devices_under_other_names_and_one_that_moved_on() -> Result<()> {
    let (mut host, dump) = reboot("disks-devices")?;
    let show = "vmrestore guests /dump/hostdump g1 --dry-run";
    restored(&host.run(show, RESTORE)?)?;
    let other = "dd if=/dev/zero of=/dev/disk/by-id/virtio-g2 bs=4096 count=1 seek=4000 \
                 conv=notrunc,fsync";
    host.run(other, MINUTE)?.success("another writer")?;
    let some = host.run("vmrestore --json guests /dump/hostdump", RESTORE)?;
    ensure!(some.code == 7, "exit code {}\n{}", some.code, some.stderr);
    ensure!(
        some.stdout.contains("sectors written"),
        "the reason is not told: {}",
        some.stdout
    );
    let forced = host.run("vmrestore guests /dump/hostdump g2 --force", RESTORE)?;
    restored(&forced)?;
    ensure!(forced.stderr.contains("overridden"), "{}", forced.stderr);
    all_go_on(host, &dump)
}

/// io_uring's requests cannot be made again; blocks that were new when they were
/// written to past the page cache went with the host. Both are refused before
/// anything is started, and nothing is changed.
#[test]
#[ignore = "needs the lab: scripts/test"]
fn what_would_lose_writes_is_refused() -> Result<()> {
    for (flavour, reason) in [("disk-io-uring", "io_uring"), ("disk-sparse", "O_DIRECT")] {
        let (mut host, _) = reboot(flavour)?;
        let sums = "md5sum /data/g1.* && stat -c '%n %s %Y %Z' /data/g1.*";
        let before = host.run(sums, MINUTE)?.success(sums)?.stdout;
        let output = host.run("vmrestore guests /dump/hostdump", RESTORE)?;
        ensure!(
            output.code == 5 || output.code == 1,
            "{flavour}: exit code {}\n{}",
            output.code,
            output.stderr
        );
        let said = format!("{}{}", output.stdout, output.stderr);
        ensure!(said.contains(reason), "{flavour}: {said}");
        let left = host.run(&format!("{}vmm", Guest::vmm_function("g1")), MINUTE)?;
        ensure!(left.code != 0, "{flavour} runs: {}", left.stdout);
        let after = host.run(sums, MINUTE)?.success(sums)?.stdout;
        ensure!(before == after, "{flavour}: {before}\n{after}");
        host.finish()?;
    }
    Ok(())
}

/// Another host with the same storage has a journal of its own, which knows of
/// nothing. The mark on the image tells it.
#[test]
#[ignore = "needs the lab: scripts/test"]
fn a_second_host_of_the_same_storage_refuses() -> Result<()> {
    let (mut host, dump) = reboot("disk-load")?;
    restored(&host.run("vmrestore guests /dump/hostdump", RESTORE)?)?;
    host.run("kill -9 4711; sleep 1; hostname other", MINUTE)?
        .success("the guest ends, and this is another host")?;
    let elsewhere = "vmrestore guests /dump/hostdump --state-dir /run/elsewhere";
    let output = host.run(elsewhere, RESTORE)?;
    ensure!(
        output.code == 5 && output.stderr.contains("on host labhost"),
        "exit code {}\n{}",
        output.code,
        output.stderr
    );
    drop(dump);
    host.finish().map(drop)
}

/// vmrestore is killed at random moments of a guest's restore, with unwritten
/// pages in play. Nothing is left of the guest, and the next run brings it back.
#[test]
#[ignore = "needs the lab: scripts/test"]
fn killed_at_random_moments_it_is_run_again() -> Result<()> {
    const KILLS: u32 = 12;
    let (mut host, dump) = reboot("disk-load")?;
    let mut noise = 0x2545_f491_u64;
    let mut killed = 0;
    for _ in 0..KILLS {
        noise = noise
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        let tenths = (noise >> 33) % 60;
        let attempt = format!(
            "{}vmrestore guests /dump/hostdump >/run/attempt 2>&1 & p=$!; \
             usleep {}; kill -9 $p 2>/dev/null; wait $p; echo $?; sleep 1; \
             vmm | tr -cd 0-9",
            Guest::vmm_function("g1"),
            tenths * 100_000
        );
        let output = host.run(&attempt, RESTORE)?.success("attempt")?;
        let mut lines = output.stdout.lines();
        let code = lines.next().unwrap_or_default();
        let left = lines.next().unwrap_or_default().trim().to_owned();
        if left.is_empty() {
            killed += 1;
            continue;
        }
        // It came too late, or right in the moment of letting go: it runs.
        println!("killed {killed} times in time, then it ran (exit code {code})");
        return all_go_on(host, &dump);
    }
    restored(&host.run("vmrestore guests /dump/hostdump", RESTORE)?)?;
    println!("killed {killed} times in time");
    all_go_on(host, &dump)
}

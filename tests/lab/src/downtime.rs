//! The same guest brought back in place, in the capture kernel, and from a dump after a reboot: from
//! the panic to its next line.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::crash::Extra;
use crate::reboot::Luggage;
use crate::{Lab, Output, Rebooted, Scenario};

const MINUTE: Duration = Duration::from_secs(60);
/// Lines that the guest must print afterwards, to be judged.
const LINES: usize = 20;
const GUEST: &str = "g1";

/// One way of bringing a guest back. Seconds since the panic.
struct Way {
    /// The capture kernel has the host's root up; or the host has, after its reboot.
    up: f64,
    /// How long vmrestore took.
    restore: f64,
    /// The guest's next line.
    line: f64,
}

/// Crashes a host twice for each size of its guest, in MiB, and prints a table in Markdown. Both guests
/// must be whole.
///
/// # Errors
/// When a step fails, or a guest did not come back as it was.
pub fn run(lab: &Lab, vmrestore: &Path, sizes: &[u32]) -> Result<()> {
    let mut rows = Vec::new();
    for size in sizes {
        let here =
            in_place(lab, vmrestore, *size).with_context(|| format!("in place, {size} MiB"))?;
        let (saved, there) =
            saved(lab, vmrestore, *size).with_context(|| format!("saved, {size} MiB"))?;
        rows.push(format!(
            "| {size} MiB | {:.1} | {:.1} | **{:.1}** | {saved:.1} | {:.1} | {:.1} | **{:.1}** | {:.1} |",
            here.up,
            here.restore,
            here.line,
            there.up,
            there.restore,
            there.line,
            there.line / here.line
        ));
        eprintln!("lab: {}", rows[rows.len() - 1]);
    }
    println!(
        "| guest | in place: up, s | vmrestore, s | next line, s | saved: dump written, s | rebooted \
         and up, s | vmrestore, s | next line, s | times |\n|---|---|---|---|---|---|---|---|---|"
    );
    for row in rows {
        println!("{row}");
    }
    Ok(())
}

fn in_place(lab: &Lab, vmrestore: &Path, size: u32) -> Result<Way> {
    let scenario = Scenario::named(&format!("in-place-{size}")).context("no such size")?;
    let extra = Extra {
        tools: vec![("vmrestore".into(), vmrestore.to_owned())],
        ..Extra::default()
    };
    let dir = lab.new_run();
    let mut host = lab.in_capture_kernel(&scenario, extra, &dir)?;
    let (died, up) = host.died.context("it did not die")?;
    host.follow_all()?;
    let began = Instant::now();
    let restored = host.run("vmrestore -v guests /proc/vmcore --in-place", 10 * MINUTE)?;
    let way = way(&mut host, died, up, began, &restored)?;
    judged(host)?;
    std::fs::remove_dir_all(dir)?;
    Ok(way)
}

/// Also: when the dump was on the disk and the host off.
fn saved(lab: &Lab, vmrestore: &Path, size: u32) -> Result<(f64, Way)> {
    let scenario = Scenario::named(&format!("saved-{size}")).context("no such size")?;
    let dump = lab.crash(scenario, Extra::default())?;
    let to_dump = Duration::from_secs_f64(dump.record.seconds_to_dump);
    let dir = lab.new_run();
    let mut host = lab.reboot_in(&dump, &Luggage::vmrestore(vmrestore), &dir)?;
    // As if the machine had been started the moment it was off.
    let died = host.started.checked_sub(to_dump).context("it was up")?;
    let up = died.elapsed();
    host.follow_all()?;
    let began = Instant::now();
    let restored = host.run("vmrestore -v guests /dump/hostdump", 10 * MINUTE)?;
    let way = way(&mut host, died, up, began, &restored)?;
    judged(host)?;
    for dir in [dir, dump.dir] {
        std::fs::remove_dir_all(dir)?;
    }
    Ok((to_dump.as_secs_f64(), way))
}

fn way(
    host: &mut Rebooted,
    died: Instant,
    up: Duration,
    began: Instant,
    restored: &Output,
) -> Result<Way> {
    let took = began.elapsed();
    eprintln!("{}", restored.stderr);
    ensure!(
        matches!(restored.code, 0 | 8),
        "exit code {}: {}{}",
        restored.code,
        restored.stdout,
        restored.stderr
    );
    host.wait_new_lines(GUEST, 1, 2 * MINUTE)?;
    let line = host.first_new(GUEST).context("not followed")?;
    Ok(Way {
        up: up.as_secs_f64(),
        restore: took.as_secs_f64(),
        line: line.saturating_duration_since(died).as_secs_f64(),
    })
}

fn judged(mut host: Rebooted) -> Result<()> {
    host.wait_new_lines(GUEST, LINES, 3 * MINUTE)?;
    for (name, verdict) in host.finish()?.verdicts(LINES) {
        ensure!(verdict.is_good(), "{name}: {verdict}");
        eprintln!("lab: {name}: {verdict}");
    }
    Ok(())
}

//! More guests than the capture kernel has memory for, on its two CPUs.

use super::{IN_PLACE, LINES, MINUTE, capture, judged, results};
use anyhow::{Context, Result, ensure};
use vmrestore_lab::Rebooted;
use vmrestore_lab::guest::Guest;

/// Leaves so much of the kernel's memory for what comes next. MiB.
fn leave(host: &mut Rebooted, mib: u64) -> Result<()> {
    let fill = format!(
        "grep -q /run/fill /proc/mounts || {{ mkdir /run/fill; mount -t tmpfs -o size=95% t /run/fill; }}; \
         rm -f /run/fill/f; \
         take=$(awk '/MemAvailable/ {{ print int($2 / 1024) - {mib} }}' /proc/meminfo); \
         dd if=/dev/zero of=/run/fill/f bs=1M count=$take 2>/dev/null; free -m"
    );
    let filled = host.run(&fill, MINUTE)?.success(&fill)?;
    println!("{}", filled.stdout);
    Ok(())
}

/// What one guest needs, and what is left when that is asked while `mib` are: by a refusal's own words.
/// MiB.
fn needed_and_left(host: &mut Rebooted, mib: u64) -> Result<(u64, u64)> {
    leave(host, mib)?;
    let output = host.run(&format!("{IN_PLACE} --dry-run g3"), 5 * MINUTE)?;
    let results = results(&output, &[5])?;
    let error = results[0]["error"].as_str().unwrap_or_default();
    let number = |before: &str| -> Result<u64> {
        let (_, behind) = error.split_once(before).with_context(|| error.to_owned())?;
        let word = behind.split_whitespace().next().unwrap_or_default();
        Ok(word.parse()?)
    };
    Ok((number("it takes ")?, number("this kernel has ")?))
}

#[test]
#[ignore = "needs the lab: scripts/test"]
fn those_named_first_get_the_memory_and_the_others_are_refused() -> Result<()> {
    let mut host = capture("in-place-order")?;
    host.follow_all()?;
    let cpus = host.run("nproc", MINUTE)?.success("nproc")?;
    ensure!(cpus.stdout.trim() == "2", "{} CPUs", cpus.stdout);
    // Two or so get in, where each takes 31 to 60 MiB, of which the most are what is copied.
    const LITTLE: u64 = 80;
    let (needed, left) = needed_and_left(&mut host, LITTLE)?;
    println!("one needs {needed} MiB with some to spare, and of {LITTLE} {left} are left");
    leave(&mut host, LITTLE - left.min(LITTLE) + needed + 60)?;

    // Not in the order of their numbers.
    let output = host.run(
        &format!("{IN_PLACE} g3 g1 g4 g2; e=$?; free -m >&2; exit $e"),
        8 * MINUTE,
    )?;
    println!("{}", output.stderr);
    let results = results(&output, &[7])?;
    let verdicts: Vec<(&str, &str)> = results
        .iter()
        .map(|r| {
            (
                r["name"].as_str().unwrap_or_default(),
                r["verdict"].as_str().unwrap_or_default(),
            )
        })
        .collect();
    let order = ["g3", "g1", "g4", "g2"];
    // How many there is room for depends on what each VMM has touched; that the first ones are they
    // does not.
    let fit = verdicts.iter().filter(|v| v.1 == "running").count();
    ensure!(
        (1..order.len()).contains(&fit),
        "{verdicts:?}\n{}",
        output.stderr
    );
    let verdict = |n| if n < fit { "running" } else { "refused" };
    let wanted: Vec<_> = order
        .iter()
        .enumerate()
        .map(|(n, name)| (*name, verdict(n)))
        .collect();
    ensure!(verdicts == wanted, "{verdicts:?}\n{}", output.stderr);
    let (run, refused) = order.split_at(fit);
    for result in &results[fit..] {
        let error = result["error"].as_str().unwrap_or_default();
        ensure!(
            error.contains("this kernel has") && error.contains("MiB left"),
            "{error}"
        );
        let hint = result["hint"].as_str().unwrap_or_default();
        ensure!(hint.contains("crashkernel="), "{hint}");
    }
    ensure!(
        output
            .stderr
            .contains("4 vCPUs share 2 of this kernel's CPUs"),
        "{}",
        output.stderr
    );
    for name in refused {
        let left = host.run(&format!("{}vmm", Guest::vmm_function(name)), MINUTE)?;
        ensure!(left.code != 0, "{name} runs: {}", left.stdout);
    }
    for name in run {
        host.wait_new_lines(name, LINES, 3 * MINUTE)?;
    }
    // The kernel has killed nobody.
    let killed = host.run("dmesg | grep -ci 'out of memory\\|oom-kill'", MINUTE)?;
    ensure!(killed.stdout.trim() == "0", "{}", killed.stdout);
    judged(host, run)
}

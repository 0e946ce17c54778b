//! What guests' memory, disks and networks are made of: each goes on in place, or is refused with its
//! reason and leaves nothing behind, while the others go on.

use super::{
    IN_PLACE, LINES, MINUTE, capture, capture_with, judged, judged_good, nonce, results, running,
};
use anyhow::{Result, ensure};
use serde_json::Value;
use vmrestore_lab::agent::Agent;
use vmrestore_lab::crash::Extra;
use vmrestore_lab::guest::Guest;
use vmrestore_lab::{Lab, Rebooted};

/// In [`Scenario`](vmrestore_lab::Scenario) `in-place-kinds`: (name, why it is refused).
const REFUSED: [(&str, &str); 2] = [("g4", "works in its memory"), ("g6", "io_uring")];
const GOES_ON: [&str; 4] = ["g1", "g2", "g3", "g5"];

/// The lines of a guest's report that are about something.
fn said<'r>(results: &'r [Value], name: &str, what: &str) -> Vec<&'r Value> {
    results
        .iter()
        .filter(|result| result["name"] == name)
        .flat_map(|result| result["fidelity"].as_array().into_iter().flatten())
        .filter(|line| line["what"].as_str().is_some_and(|w| w.contains(what)))
        .collect()
}

#[test]
#[ignore = "needs the lab: scripts/test"]
fn guests_in_huge_pages_go_on_and_need_none_in_the_capture_kernel() -> Result<()> {
    let mut host = capture("in-place-huge")?;
    host.follow_all()?;
    let results = running(host.run(IN_PLACE, 8 * MINUTE)?)?;
    ensure!(results.len() == 3, "{results:#?}");
    for name in ["g1", "g2", "g3"] {
        let whole = said(&results, name, "mem").iter().any(|line| {
            line["how"]
                .as_str()
                .is_some_and(|how| how.contains("no huge pages"))
        });
        ensure!(whole, "{name}: {results:#?}");
    }
    let pages = "cat /sys/kernel/mm/hugepages/*/nr_hugepages";
    let pages = host.run(pages, MINUTE)?.success(pages)?;
    ensure!(
        pages.stdout.split_whitespace().all(|count| count == "0"),
        "{}",
        pages.stdout
    );
    judged_good(host)
}

#[test]
#[ignore = "needs the lab: scripts/test"]
fn each_kind_of_guest_goes_on_or_is_refused() -> Result<()> {
    let lab = Lab::prepare()?;
    let mut extra = Extra::default();
    for name in ["swapped", "sharer"] {
        extra.tools.push((name.into(), lab.test_program(name)?));
    }
    let programs: Vec<_> = extra.tools.iter().map(|(_, file)| file.clone()).collect();
    extra.alive = Some(Box::new(|machine| before_it_dies(&mut machine.agent)));
    let mut host = capture_with(&lab, "in-place-kinds", extra)?;
    for program in programs {
        std::fs::remove_file(program)?;
    }
    host.follow_all()?;

    let results = results(&host.run(IN_PLACE, 8 * MINUTE)?, &[7])?;
    for result in &results {
        let name = result["name"].as_str().unwrap_or_default();
        println!("{name}: {} {}", result["verdict"], result["error"]);
        for line in said(&results, name, "memory in place") {
            println!("{name}: {}", line["how"]);
        }
        match REFUSED.iter().find(|(refused, _)| *refused == name) {
            Some((_, why)) => {
                let error = result["error"].as_str().unwrap_or_default();
                ensure!(
                    result["verdict"] == "refused" && error.contains(why),
                    "{result:#}"
                );
                ensure!(result["hint"].as_str().is_some_and(|hint| !hint.is_empty()));
            }
            None => ensure!(result["verdict"] == "running", "{result:#}"),
        }
    }
    ensure!(
        results.len() == REFUSED.len() + GOES_ON.len(),
        "{results:#?}"
    );
    for (name, _) in REFUSED {
        nothing_is_left(&mut host, name)?;
    }
    ensure!(!said(&results, "g5", "O_DIRECT of /data/g5.disk").is_empty());

    // Who answers on the network is told by what only the guest's memory has.
    let answer = host.run("lab-net ask 10.9.0.12:7 5 1000", MINUTE)?.stdout;
    let nonce = nonce(&host, "g5")?;
    ensure!(answer.contains(&nonce), "{nonce} is not in {answer}");
    for name in GOES_ON {
        host.wait_new_lines(name, LINES, 3 * MINUTE)?;
    }
    judged(host, &GOES_ON)
}

#[test]
#[ignore = "needs the lab: scripts/test"]
fn pages_on_a_swap_disk_are_read_from_there() -> Result<()> {
    let lab = Lab::prepare()?;
    let swapped = lab.test_program("swapped")?;
    let extra = Extra {
        tools: vec![("swapped".into(), swapped.clone())],
        alive: Some(Box::new(|machine| swap_out(&mut machine.agent))),
        ..Extra::default()
    };
    let mut host = capture_with(&lab, "in-place-swapped", extra)?;
    std::fs::remove_file(swapped)?;
    host.follow_all()?;
    let results = running(host.run(IN_PLACE, 8 * MINUTE)?)?;
    let away = said(&results, "g1", "pages from swap area");
    ensure!(!away.is_empty(), "nothing was on the disk: {results:#?}");
    println!("{}: {}", away[0]["what"], away[0]["how"]);
    judged_good(host)
}

/// A shell command that has a process's memory written to the swap disk.
fn push_out(pid: u32) -> String {
    format!(
        "for b in /sys/block/vd*; do [ \"$(cat $b/serial)\" = swap ] && area=/dev/${{b##*/}}; done; \
         grep -q $area /proc/swaps || {{ mkswap $area && swapped on $area 1; }}; \
         swapped out {pid} && cat /proc/swaps"
    )
}

/// What is written to the disk stays in memory too, until that is short: a file in memory that is
/// larger than what is free is being written when the host dies.
fn swap_out(agent: &mut Agent) -> Result<()> {
    let short = "mkdir -p /run/fill && mount -t tmpfs -o size=95% t /run/fill; \
         out() { awk '/pswpout/ { print $2 }' /proc/vmstat; }; before=$(out); \
         free=$(awk '/MemAvailable/ { print int($2 / 1024) }' /proc/meminfo); \
         dd if=/dev/zero of=/run/fill/f bs=1M count=$((free + 24)) >/dev/null 2>&1 & \
         for i in $(seq 600); do [ $(out) -gt $((before + 1000)) ] && break; sleep 0.05; done; \
         grep -E 'MemFree|SwapCached|SwapFree' /proc/meminfo; grep ^Swap: /proc/4711/smaps_rollup";
    for step in [push_out(4711).as_str(), short] {
        let done = agent.run(step, 2 * MINUTE)?.success(step)?;
        println!("{}", done.stdout.trim());
    }
    Ok(())
}

/// Brings each guest into the state for which it is there.
fn before_it_dies(agent: &mut Agent) -> Result<()> {
    let steps = [
        // A helper of g4.
        "setsid sharer 5011 </dev/null >/run/sharer 2>&1 & \
         for i in $(seq 100); do grep -q memory /run/sharer && break; sleep 0.1; done; cat /run/sharer; \
         grep -q memory /run/sharer",
        // Huge pages of g1, KiB.
        "awk '/AnonHugePages/ { sum += $2 } END { print sum; exit sum < 32768 }' /proc/4711/smaps",
        "for i in $(seq 200); do [ $(cat /sys/kernel/mm/ksm/pages_sharing) -ge 1000 ] && break; \
         sleep 0.1; done; cat /sys/kernel/mm/ksm/pages_shared /sys/kernel/mm/ksm/pages_sharing; \
         [ $(cat /sys/kernel/mm/ksm/pages_sharing) -ge 1000 ]",
        // Of g3, to the disk and still in the swap cache.
        &push_out(4911),
    ];
    for step in steps {
        let done = agent.run(step, 2 * MINUTE)?.success(step)?;
        println!("{}", done.stdout.trim());
    }
    Ok(())
}

/// No VMM of a guest that was refused, and nothing that would become one.
fn nothing_is_left(host: &mut Rebooted, name: &str) -> Result<()> {
    let left = host.run(&format!("{}vmm", Guest::vmm_function(name)), MINUTE)?;
    ensure!(left.code != 0, "{name} runs: {}", left.stdout);
    Ok(())
}

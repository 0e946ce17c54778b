//! By way of files: guests and a program are extracted on the rebooted host, the
//! dump is deleted, the host boots once more, and they go on from the directory.
//!
//! Needs the lab (docs/lab.md): `scripts/test --all` runs it with
//! `--include-ignored`. What they print is judged by the lab.

use anyhow::{Context, Result, ensure};
use std::path::Path;
use std::time::Duration;
use vmrestore_lab::{Lab, Luggage, Output, Rebooted, Scenario};

const MINUTE: Duration = Duration::from_secs(60);
const RESTORE: Duration = Duration::from_secs(300);
/// Lines that each guest and the program must print after its restore.
const LINES: usize = 20;

fn run(host: &mut Rebooted, command: &str, codes: &[i32], words: &[&str]) -> Result<Output> {
    let output = host.run(command, RESTORE)?;
    let said = format!("{}{}", output.stdout, output.stderr);
    println!("{command}: exit code {}\n{said}", output.code);
    ensure!(codes.contains(&output.code), "{command}: {}", output.code);
    for word in words {
        ensure!(said.contains(word), "{command}: it does not say {word:?}");
    }
    ensure!(
        matches!(output.code, 0 | 8) || output.stderr.contains("hint: "),
        "{command}: no hint"
    );
    Ok(output)
}

#[test]
#[ignore = "needs the lab: scripts/test"]
fn what_was_extracted_goes_on_after_one_more_boot() -> Result<()> {
    let lab = Lab::prepare()?;
    let dump = lab.dump(&Scenario::named("main").context("no such scenario")?)?;
    let luggage = Luggage::vmrestore(Path::new(env!("CARGO_BIN_EXE_vmrestore")));
    let mut host = lab.reboot(&dump, &luggage)?;
    run(
        &mut host,
        "vmrestore extract /dump/hostdump g1 g2 pid:4911 -o /dump/out",
        &[0],
        &[],
    )?;
    // Nobody else may read what their memory held.
    let open = "find /dump/out -mindepth 1 -perm /077 | wc -l; ls -l /dump/out/*";
    let output = run(&mut host, open, &[0], &[])?;
    ensure!(output.stdout.starts_with("0\n"), "{}", output.stdout);
    let delete = "rm /dump/hostdump && sync && ls /dump";
    run(&mut host, delete, &[0], &[])?;
    let disks = host.shut_down()?;

    let luggage = Luggage {
        after: Some(disks.clone()),
        ..luggage
    };
    let mut host = lab.reboot(&dump, &luggage)?;
    std::fs::remove_dir_all(&disks)?;
    let gone = run(&mut host, "ls /dump", &[0], &[])?;
    ensure!(!gone.stdout.contains("hostdump"), "the dump is still there");

    // Damage is found before anything is changed.
    let page = "d=/dump/out/pid-4911; cp $d/memory.img /dump/keep; \
                n=$(($(stat -c %s $d/memory.img) / 4096 - 1)); \
                printf x | dd of=$d/memory.img bs=1 seek=$((n * 4096 + 77)) conv=notrunc 2>&1; \
                vmrestore restore $d";
    run(&mut host, page, &[1, 3, 5], &["is not what was written"])?;
    let cut = "d=/dump/out/pid-4911; \
               head -c $(($(stat -c %s /dump/keep) - 4096)) /dump/keep > $d/memory.img; \
               vmrestore process $d";
    run(&mut host, cut, &[3], &["memory.img", "cut short"])?;
    let index = "d=/dump/out/pid-4911; cp /dump/keep $d/memory.img; cp $d/dataset.json /dump/keep; \
                 sed -i 's/4911/4912/' $d/dataset.json; vmrestore restore $d";
    run(&mut host, index, &[3], &["dataset.json is damaged"])?;
    let mend = "cp /dump/keep /dump/out/pid-4911/dataset.json; [ ! -e /proc/4911 ]";
    run(&mut host, mend, &[0], &[])?;

    run(&mut host, "vmrestore guests /dump/out g3", &[4], &["g3"])?;
    run(
        &mut host,
        "vmrestore guests /dump/out",
        &[0, 8],
        &["g1", "g2"],
    )?;
    run(
        &mut host,
        "vmrestore process /dump/out pid:4911",
        &[0, 8],
        &[],
    )?;
    // The journal knows of all three, from whichever command.
    let again = "vmrestore restore /dump/out";
    run(&mut host, again, &[5], &["restored already"])?;

    host.follow_all()?;
    for name in dump.names() {
        host.wait_new_lines(&name, LINES, 3 * MINUTE)?;
    }
    for (name, verdict) in host.finish()?.verdicts(LINES) {
        ensure!(verdict.is_good(), "{name}: {verdict}");
        println!("{name}: {verdict}");
    }
    Ok(())
}

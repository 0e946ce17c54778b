//! Bare mode and cores, of guests of a host that has really died.
//!
//! Needs the lab (docs/lab.md): `scripts/test` runs these with
//! `--include-ignored`. What a bare guest prints is held against what the same
//! guest prints when it is restored whole, which the lab's judge has found
//! good.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;
use vmrestore_lab::{CachedDump, Lab, Luggage, Rebooted, Scenario};

const MINUTE: Duration = Duration::from_secs(60);
const RESTORE: Duration = Duration::from_secs(300);
/// Lines that a guest must print.
const LINES: usize = 10;

fn vmrestore() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_vmrestore"))
}

fn dump_of(scenario: &Scenario) -> Result<(Lab, CachedDump)> {
    let lab = Lab::prepare()?;
    let dump = lab.dump(scenario)?;
    Ok((lab, dump))
}

fn main_scenario() -> Result<Scenario> {
    Scenario::named("main").context("no such scenario")
}

/// A guest's line with its number, if it is whole by its own checksum
/// (FNV-1a of 32 bits).
fn line(text: &str) -> Option<(u64, BTreeMap<&str, &str>)> {
    let (body, crc) = text.rsplit_once(" crc=")?;
    let hash = body.bytes().fold(2_166_136_261_u32, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(16_777_619)
    });
    if u32::from_str_radix(crc, 16) != Ok(hash) {
        return None;
    }
    let fields: BTreeMap<_, _> = body
        .strip_prefix("L ")?
        .split(' ')
        .filter_map(|word| word.split_once('='))
        .collect();
    Some((fields.get("n")?.parse().ok()?, fields))
}

/// The whole lines of a guest, but for the first, which the crash may have cut.
fn lines(text: &str) -> Result<BTreeMap<u64, BTreeMap<&str, &str>>> {
    let mut all = text.split('\n');
    all.next();
    let mut found = BTreeMap::new();
    let mut all = all.peekable();
    while let Some(text) = all.next() {
        // The last was cut by its end.
        if all.peek().is_some() {
            let (n, fields) = line(text).with_context(|| format!("not whole: {text:?}"))?;
            ensure!(fields["verify"] == "ok", "{text}");
            found.insert(n, fields);
        }
    }
    Ok(found)
}

/// Lines one after the other, and of the nonce that the guest had.
fn are_in_order(of: &BTreeMap<u64, BTreeMap<&str, &str>>, before: &str) -> Result<()> {
    ensure!(of.len() >= LINES, "only {} lines", of.len());
    let numbers: Vec<u64> = of.keys().copied().collect();
    ensure!(
        numbers.windows(2).all(|pair| pair[1] == pair[0] + 1),
        "{numbers:?}"
    );
    let last = before
        .lines()
        .filter_map(line)
        .next_back()
        .context("nothing was printed before the crash")?;
    ensure!(last.0 < numbers[0], "{} came before the crash", numbers[0]);
    for fields in of.values() {
        ensure!(fields["nonce"] == last.1["nonce"], "another guest's nonce");
    }
    Ok(())
}

/// Everything that a look must leave as it is: files with their times (a mark
/// in an extended attribute would change ctime), journals, processes.
fn fingerprint(host: &mut Rebooted) -> Result<String> {
    let files = "find /data -type f | sort | xargs md5sum; \
                 find /data | sort | xargs stat -c '%n %Y %Z %s'; ls -a /run; \
                 find /var/lib/ | sort; ps | grep -c '[q]emu-system'; ls /sys/class/net; \
                 true";
    Ok(host.run(files, MINUTE)?.success("fingerprint")?.stdout)
}

/// Runs a guest bare; what it printed. Exit code 0, or 8 where state that no
/// dump holds was lost.
fn bare(host: &mut Rebooted, guest: &str, seconds: u32) -> Result<String> {
    let command = format!("vmrestore guests /dump/hostdump {guest} --bare --for {seconds}");
    let output = host.run(&command, RESTORE)?;
    ensure!(
        [0, 8].contains(&output.code) && output.stderr.contains("the time was up"),
        "{command}: exit code {}\n{}\n{}",
        output.code,
        output.stdout,
        output.stderr
    );
    println!("{}", output.stderr);
    Ok(output.stdout)
}

#[test]
#[ignore = "needs the lab: scripts/test"]
fn a_look_at_guests_leaves_no_trace_and_a_restore_goes_on_from_the_same_place() -> Result<()> {
    let (lab, dump) = dump_of(&main_scenario()?)?;
    let mut host = lab.reboot(&dump, &Luggage::vmrestore(vmrestore()))?;
    let before = fingerprint(&mut host)?;
    let first = bare(&mut host, "g1", 20)?;
    let second = bare(&mut host, "g1", 20)?;

    // Its disk is not there: the line waits for a block, and the rest runs.
    let g2 = "vmrestore --json guests /dump/hostdump g2 --bare --for 10";
    let g2 = host.run(g2, RESTORE)?;
    ensure!([0, 8].contains(&g2.code), "g2: {}\n{}", g2.code, g2.stderr);
    let report: Value = serde_json::from_str(&g2.stdout)?;
    ensure!(report["ending"] == "limit", "{report}");
    println!("g2: exits {} {}", report["exits"], report["absent_devices"]);
    ensure!(
        report["exits"].as_array().map(Vec::len) == Some(2),
        "{report}"
    );

    let after = fingerprint(&mut host)?;
    ensure!(
        after == before,
        "a look changed something:\n{before}\n{after}"
    );

    let all = host.run("vmrestore guests /dump/hostdump", RESTORE)?;
    ensure!([0, 8].contains(&all.code), "{}\n{}", all.code, all.stderr);
    host.follow_all()?;
    for guest in ["g1", "g2"] {
        host.wait_new_lines(guest, 4 * LINES, 3 * MINUTE)?;
    }
    let after = host.finish()?;
    for guest in ["g1", "g2"] {
        let verdict = after.verdict(guest, LINES);
        ensure!(verdict.is_good(), "{guest}: {verdict}");
    }

    // The same guest, restored whole, said the same.
    let whole = String::from_utf8_lossy(after.file("g1")).into_owned();
    let whole: BTreeMap<u64, _> = whole.lines().filter_map(line).collect();
    let seen = dump.before("g1");
    for text in [first, second] {
        let lines = lines(&text)?;
        are_in_order(&lines, &String::from_utf8_lossy(&seen))?;
        let mut both = 0;
        for (n, fields) in &lines {
            if let Some(wanted) = whole.get(n) {
                both += 1;
                for key in ["nonce", "sum", "live", "verify"] {
                    ensure!(fields[key] == wanted[key], "line {n}: {key}");
                }
            }
        }
        ensure!(both >= LINES, "{both} lines of the bare guest came again");
        println!(
            "{} lines bare, {both} of them also from the restore",
            lines.len()
        );
    }
    Ok(())
}

fn run(command: &mut Command) -> Result<Output> {
    let output = command.output()?;
    ensure!(output.status.success(), "{command:?}: {output:?}");
    Ok(output)
}

/// A guest's core is the dump of a machine: vmrestore lists its processes, and
/// drgn finds its kernel's name at the address that the note tells, physical
/// and virtual.
#[test]
#[ignore = "needs the lab: scripts/test"]
fn a_core_of_a_guest_is_opened_by_others() -> Result<()> {
    let (lab, dump) = dump_of(&main_scenario()?)?;
    let work = lab.new_run();
    std::fs::create_dir_all(&work)?;
    for (guest, cpus) in [("g1", 1), ("g2", 2)] {
        let core = work.join(format!("{guest}.core"));
        let extract = || {
            let mut command = Command::new(vmrestore());
            command.args(["--json", "extract", "--core"]);
            command.arg(dump.path()).arg(guest).arg("-o").arg(&core);
            command
        };
        let report: Value = serde_json::from_slice(&run(&mut extract())?.stdout)?;
        ensure!(report["vcpus"] == cpus, "{report}");
        ensure!(report["missing"] == serde_json::json!([]), "{report}");
        // A second one is refused, and harms nothing.
        let again = extract().output()?;
        ensure!(again.status.code() == Some(5), "{again:?}");
        run(extract().arg("--force"))?;

        let list = run(Command::new(vmrestore())
            .args(["--json", "list"])
            .arg(&core))?;
        let list: Value = serde_json::from_slice(&list.stdout)?;
        let init = list["processes"]
            .as_array()
            .into_iter()
            .flatten()
            .find(|p| p["pid"] == 1)
            .with_context(|| format!("no init in {list}"))?;
        ensure!(init["state"] == "whole", "{init}");

        let script = r#"
import drgn, sys
core = sys.argv[1]
text = open(core, "rb").read(1 << 20)
text = text[text.index(b"OSRELEASE="):].split(b"\0")[0].decode()
info = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
prog = drgn.Program()
prog.set_core_dump(core)
name = int(info["SYMBOL(init_uts_ns)"], 16) + int(info["OFFSET(uts_namespace.name)"])
at = name - 0xffffffff80000000 + int(info["NUMBER(phys_base)"])
for bytes in prog.read(name, 195), prog.read(at, 195, physical=True):
    assert bytes[:6] == b"Linux\0", bytes
    assert bytes[130:].split(b"\0")[0].decode() == info["OSRELEASE"], bytes
print(info["OSRELEASE"])
"#;
        let mut drgn = Command::new(lab.python_with_drgn()?);
        let said = run(drgn.args(["-c", script]).arg(&core))?;
        let release = String::from_utf8_lossy(&said.stdout).trim().to_owned();
        ensure!(report["kernel"] == release.as_str(), "{report} {release}");
        println!("{guest}: {release}, {report}");
    }
    let left: Vec<_> = std::fs::read_dir(&work)?.collect::<Result<_, _>>()?;
    ensure!(left.len() == 2, "{left:?}");
    std::fs::remove_dir_all(&work)?;
    Ok(())
}

/// What the program had last said before the crash, as seen from outside: the value behind a word.
fn last_word(said: &str, name: &str) -> Option<String> {
    let line = said.lines().rev().find(|line| line.contains(" crc="))?;
    let mut words = line.split_whitespace();
    words.find_map(|word| Some(word.strip_prefix(name)?.to_owned()))
}

/// A process's core is opened by gdb: all threads, the code that they are in (out of the page cache,
/// as the program's files are not on this machine), and a mapped file with what it had written there.
#[test]
#[ignore = "needs the lab: scripts/test"]
fn a_core_of_a_process_is_opened_by_gdb() -> Result<()> {
    let (lab, dump) = dump_of(&main_scenario()?)?;
    let work = lab.new_run();
    std::fs::create_dir_all(&work)?;
    let core = work.join("core");
    let mut extract = Command::new(vmrestore());
    extract.args(["--json", "extract", "--core"]);
    extract
        .arg(dump.path())
        .arg("pid:4911")
        .arg("-o")
        .arg(&core);
    let output = extract.output()?;
    // Exit code 8: threads that ran have FPU registers that are older.
    ensure!(matches!(output.status.code(), Some(0 | 8)), "{output:?}");
    let report: Value = serde_json::from_slice(&output.stdout)?;
    ensure!(report["missing"] == serde_json::json!([]), "{report}");
    let threads = report["threads"].as_u64().context("no threads")?;
    ensure!(threads >= 4, "{report}");

    let gdb = |commands: &[&str]| -> Result<String> {
        let mut gdb = Command::new("gdb");
        gdb.args(["-batch", "-nx", "-ex", "set width 0"]);
        gdb.arg("-core").arg(&core);
        for command in commands {
            gdb.args(["-ex", command]);
        }
        Ok(String::from_utf8(run(&mut gdb)?.stdout)?)
    };
    let said = gdb(&[
        "info threads",
        "thread apply all -q x/i $pc - 2",
        "info auxv",
        "info proc mappings",
    ])?;
    println!("{said}");
    ensure!(said.matches("LWP ").count() as u64 >= threads, "{said}");
    ensure!(said.contains("lab-process /data/process"), "{said}");
    ensure!(said.contains("AT_SYSINFO_EHDR"), "{said}");
    // Those that waited, waited in system calls.
    ensure!(said.matches(":\tsyscall").count() >= 2, "{said}");
    let map = said
        .lines()
        .find(|line| line.contains("/data/process/counter.map"))
        .and_then(|line| line.split_whitespace().next())
        .context("counter.map is not in it")?;
    let words = gdb(&[&format!("x/2gx {map}")])?;
    let values: Vec<&str> = words
        .lines()
        .last()
        .unwrap_or_default()
        .split_whitespace()
        .skip(1)
        .collect();
    let before = String::from_utf8_lossy(&dump.before("process")).into_owned();
    let nonce = last_word(&before, "nonce=").context("no nonce")?;
    let counted: u64 = last_word(&before, "map=").context("no count")?.parse()?;
    let hex = |word: &str| u64::from_str_radix(word.trim_start_matches("0x"), 16);
    let [count, marked] = values.as_slice() else {
        anyhow::bail!("{words}");
    };
    ensure!(hex(marked)? == hex(&nonce)?, "{words} and not {nonce}");
    let more = hex(count)?.wrapping_sub(counted);
    ensure!(more < 1000, "{words}: it had said {counted}");
    println!(
        "nonce {nonce}, {counted} counted before, {} in the core",
        hex(count)?
    );
    std::fs::remove_dir_all(&work)?;
    Ok(())
}

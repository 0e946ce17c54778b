//! Memory that is not a file: `/proc/kcore` of a host that lives, and `/proc/vmcore` in its capture
//! kernel after it has died. What vmrestore says there is what it says of the saved dump.
//!
//! Needs the lab (docs/lab.md): `scripts/test` runs it with `--include-ignored`. The crash is made
//! for this test and not kept: the vmrestore that is tested takes part in it.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use vmrestore_lab::crash::Extra;
use vmrestore_lab::scenario::DumpFile;
use vmrestore_lab::{Lab, MAIN_DUMP, Scenario};

/// What `check` says to reserve for the guests that run. MiB.
fn needed_in_place(check: &Value) -> Option<u64> {
    let findings = check["findings"].as_array()?;
    let said = findings.iter().find_map(|finding| {
        let found = finding["found"].as_str()?;
        let (_, rest) = found.split_once("crashkernel=")?;
        (finding["what"] == "in place" && found.contains("g1 ")).then_some(rest)
    })?;
    said.split_once('M')?.0.parse().ok()
}

const MINUTE: Duration = Duration::from_secs(60);
/// In the capture kernel, before makedumpfile.
const CAPTURE: &str = "\
/dump/vmrestore --json list /proc/vmcore > /dump/vmcore.json 2> /dump/vmcore.err
/dump/vmrestore --json check /proc/vmcore > /dump/check.json 2>> /dump/vmcore.err
echo codes are in the files >> /dump/vmcore.err
";

#[test]
#[ignore = "needs the lab: scripts/test"]
fn the_living_host_and_its_capture_kernel_list_what_the_dump_lists() -> Result<()> {
    let lab = Lab::prepare()?;
    let vmrestore = Path::new(env!("CARGO_BIN_EXE_vmrestore"));
    let work = lab.new_run();
    std::fs::create_dir_all(&work)?;
    let script = work.with_extension("capture.sh");
    std::fs::write(&script, CAPTURE)?;
    let mut luggage = lab.libraries(vmrestore)?;
    luggage.push(("vmrestore".into(), vmrestore.to_owned()));
    luggage.push(("capture.sh".into(), script.clone()));

    let scenario = Scenario {
        dumps: vec![DumpFile::new(MAIN_DUMP, "-l -d 17")],
        warm_up: 5,
        ..Scenario::named("microvm").context("no such scenario")?
    };
    let (mut kcore, mut alive) = (Value::Null, Value::Null);
    let extra = Extra {
        luggage,
        keep: ["vmcore.json", "vmcore.err", "check.json"]
            .map(String::from)
            .into(),
        alive: Some(Box::new(|machine| {
            let list = "/dump/vmrestore --json list /proc/kcore";
            let list = machine.agent.run(list, 8 * MINUTE)?.success("kcore")?;
            kcore = serde_json::from_str(&list.stdout)?;
            // Its exit code speaks of kdump's configuration, which the lab has not.
            let check = machine
                .agent
                .run("/dump/vmrestore --json check", 8 * MINUTE)?;
            alive = serde_json::from_str(&check.stdout).context("check")?;
            Ok(())
        })),
        ..Extra::default()
    };
    lab.crash_once(&scenario, &work, extra)?;

    let said = std::fs::read_to_string(work.join("vmcore.err")).unwrap_or_default();
    let read = |name: &str| -> Result<Value> {
        let text = std::fs::read(work.join(name))?;
        serde_json::from_slice(&text).with_context(|| format!("{name}: {said}"))
    };
    // How many present pages are known for zeros depends on the format.
    let without_zeros = |mut list: Value| {
        for guest in list["guests"].as_array_mut().into_iter().flatten() {
            if let Some(memory) = guest["memory_in_dump"].as_object_mut() {
                memory.remove("zero");
            }
        }
        list
    };
    let captured = without_zeros(read("vmcore.json")?);
    read("check.json")?;
    let output = std::process::Command::new(vmrestore)
        .args(["--json", "list"])
        .arg(work.join(MAIN_DUMP))
        .output()?;
    let saved = without_zeros(serde_json::from_slice(&output.stdout)?);
    ensure!(
        captured == saved,
        "in the capture kernel: {captured:#}\nand of the dump: {saved:#}"
    );
    // A living host goes on: what cannot change between are its guests and its
    // long-lived processes.
    let guests = |list: &Value| -> Vec<(Value, Value, Value)> {
        let guests = list["guests"].as_array().cloned().unwrap_or_default();
        let of = |g: Value| (g["name"].clone(), g["pid"].clone(), g["vm"].clone());
        guests.into_iter().map(of).collect()
    };
    ensure!(!guests(&saved).is_empty(), "no guest: {saved:#}");
    ensure!(
        guests(&kcore) == guests(&saved),
        "alive: {kcore:#}\nand of the dump: {saved:#}"
    );
    ensure!(
        needed_in_place(&alive).is_some_and(|mib| (320..640).contains(&mib)),
        "a guest of 160 MiB beside a kernel of 256: {alive:#}"
    );
    for process in saved["processes"].as_array().into_iter().flatten() {
        let same = |other: &&Value| {
            ["pid", "comm", "start_time", "task"]
                .iter()
                .all(|key| other[key] == process[key])
        };
        let alive = kcore["processes"].as_array().into_iter().flatten();
        // But for the shell that let the host die.
        ensure!(
            alive.clone().any(|other| same(&other)) || process["comm"] == "sh",
            "{process} was not there in {kcore:#}"
        );
    }
    let _ = std::fs::remove_file(script);
    std::fs::remove_dir_all(&work)?;
    Ok(())
}

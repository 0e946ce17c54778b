//! `vmrestore check DUMP`, as someone sees it whose host has just died: of synthetic dumps without a
//! kernel, and (with the lab) of a real crash in every state that a dump may be in.

mod synth;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use synth::{Kdump, Machine, Noise, PAGE, Slot, TempFile};
use vmrestore::dataset::PageContent;
use vmrestore::extract::DeadHost;
use vmrestore_lab::{CachedDump, Lab, Scenario};

fn check(arguments: &[&str], dump: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_vmrestore"))
        .arg("check")
        .args(arguments)
        .arg(dump)
        .output()
        .expect("vmrestore starts")
}

/// The JSON document, whose exit code is the command's.
fn document(arguments: &[&str], dump: &Path) -> Value {
    let output = check(&[&["--json"], arguments].concat(), dump);
    let document: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| {
        let stderr = String::from_utf8_lossy(&output.stderr);
        panic!("{}: {e}\n{stderr}", dump.display())
    });
    assert_eq!(document["schema_version"], 1);
    let code = output.status.code().map(i64::from);
    assert_eq!(document["exit_code"].as_i64(), code);
    document
}

/// What was found of something, and whether it was good.
fn finding<'d>(document: &'d Value, what: &str) -> (&'d str, &'d str) {
    let all = document["findings"].as_array().expect("findings");
    let found = all.iter().find(|f| f["what"] == what);
    let found = found.unwrap_or_else(|| panic!("nothing of {what:?} in {document:#}"));
    let text = |field: &str| found[field].as_str().expect("a text");
    (text("verdict"), text("found"))
}

fn sum(counts: &Value, fields: &[&str]) -> u64 {
    fields.iter().map(|f| counts[f].as_u64().expect(f)).sum()
}

fn store_broken(page: &[u8; PAGE], noise: &mut Noise) -> (Vec<u8>, u32) {
    match page[0] {
        0xb7 => (vec![0x5a; 100], 1),
        _ => synth::store_zlib(page, noise),
    }
}

#[test]
fn a_dump_without_a_kernel_says_what_it_has_and_ends_as_unreadable() {
    let mut noise = Noise(3);
    let mut machine = Machine::random(&mut noise, 900);
    machine.vmcoreinfo = Some("OSRELEASE=5.14.0-427.el9.x86_64\nCRASHTIME=1700000000\n".into());
    let mut broken = 0;
    for slot in &mut machine.slots {
        if let Slot::Data(page) = slot {
            page[0] = if noise.below(100) == 0 { 0xb7 } else { 1 };
            broken += u64::from(page[0] == 0xb7);
        }
    }
    assert!(broken > 0);
    let (present, filtered, not_ram) = machine.counts();
    let how = Kdump {
        level: 31,
        store: store_broken,
        ..Kdump::default()
    };
    let file = TempFile::new(&machine.kdump(how, &mut noise));

    let full = document(&[], file.path());
    assert_eq!(full["exit_code"], 5, "the level is the first that is bad");
    assert_eq!(full["crash"]["time"], 1_700_000_000);
    assert_eq!(full["crash"]["release"], "5.14.0-427.el9.x86_64");
    assert_eq!(full["dump"]["level"], 31);
    let pages = &full["pages"];
    assert_eq!(pages["corrupt"], broken);
    assert_eq!(pages["present"], present - broken);
    assert_eq!(
        (&pages["filtered"], &pages["not_ram"]),
        (&filtered.into(), &not_ram.into())
    );
    assert_eq!(finding(&full, "pages").0, "bad");
    assert_eq!(finding(&full, "dead kernel").0, "bad");
    assert_eq!(
        full["advice"][0]["file"], "/etc/kdump.conf",
        "as el9 has it"
    );
    assert!(
        full["verdict"]
            .as_str()
            .expect("a sentence")
            .starts_with("Nothing can be")
    );

    let quick = document(&["--quick"], file.path());
    assert_eq!(quick["pages"]["corrupt"], Value::Null, "it was not read");
    assert_eq!(quick["pages"]["present"], present);
    assert_eq!(finding(&quick, "pages").0, "note");

    let text = check(&[], file.path());
    let text = String::from_utf8(text.stdout).expect("text");
    assert!(
        text.starts_with("THE CRASH\n      time      2023-11-14 22:13:20 UTC, "),
        "{text}"
    );
    let last = text.lines().last().expect("lines");
    assert!(last.starts_with("Nothing can be brought back"), "{text}");
    assert!(
        text.contains("core_collector makedumpfile -l --message-level 7 -d 17"),
        "{text}"
    );
}

#[test]
fn quick_is_a_word_about_a_dump() {
    let output = Command::new(env!("CARGO_BIN_EXE_vmrestore"))
        .args(["check", "--quick"])
        .output()
        .expect("vmrestore starts");
    assert_eq!(output.status.code(), Some(2));
}

fn crashed(scenario: &str) -> CachedDump {
    let lab = Lab::prepare().expect("the lab");
    let scenario = Scenario::named(scenario).expect("a scenario");
    lab.dump(&scenario).expect("a dump")
}

fn copy_of(bytes: &[u8]) -> TempFile {
    TempFile::new(bytes)
}

#[test]
#[ignore = "needs the lab: scripts/test"]
fn a_good_dump_says_when_and_of_what_the_host_died_in_every_format() {
    let dump = crashed("formats");
    let mut ram = Vec::new();
    for name in ["hostdump", "lzo", "elf", "flat-elf"] {
        let found = document(&[], &dump.file(name));
        let crash = &found["crash"];
        assert_eq!(
            crash["message"],
            "Kernel panic - not syncing: sysrq triggered crash"
        );
        assert_eq!(crash["log"][0]["text"], "sysrq: Trigger a crash");
        assert_eq!(
            crash["comm"], "sh",
            "{name}: who wrote to /proc/sysrq-trigger"
        );
        assert_eq!(crash["stopped_from_outside"], false);
        let version = crash["version"].as_str().expect("a build");
        assert!(version.contains("Debian"), "{version}");
        let guest = &found["guests"][0];
        assert_eq!(
            (&guest["state"], &guest["name"]),
            (&"whole".into(), &"g1".into()),
            "{name}"
        );
        assert_eq!(found["pages"]["corrupt"], 0, "{name}");
        assert_eq!(found["advice"].as_array().map(Vec::len), Some(0), "{name}");
        assert_eq!(finding(&found, "completeness"), ("good", "whole"));
        let states = [
            "present",
            "filtered",
            "truncated",
            "corrupt",
            "swapped",
            "untouched",
        ];
        // 160 MiB, whatever the state of each page.
        assert_eq!(sum(&guest["ram"], &states), 160 << 8, "{name}");
        ram.push(guest["ram"]["present"].clone());
    }
    assert!(ram.iter().all(|r| *r == ram[0]), "{ram:?}");
    // The first word and the last one are what a person needs.
    let output = check(&[], &dump.path());
    let text = String::from_utf8(output.stdout).expect("text");
    let at = |what: &str| {
        text.find(what)
            .unwrap_or_else(|| panic!("no {what:?} in {text}"))
    };
    assert_eq!(at("THE CRASH"), 0);
    assert!(at("Kernel panic") < at("THE DUMP") && at("THE DUMP") < at("THE GUESTS"));
    let last = text.lines().last().expect("lines");
    assert!(
        last.starts_with("The guest is whole in this dump")
            || last.starts_with("1 of 1 guest can be restored here"),
        "{last}"
    );
}

#[test]
#[ignore = "needs the lab: scripts/test"]
fn a_dump_of_level_31_names_the_line_to_write() {
    let found = document(&[], &crashed("formats").file("d31"));
    assert_eq!(found["exit_code"], 5);
    assert_eq!(finding(&found, "dump level").0, "bad");
    let guest = &found["guests"][0];
    assert_eq!(
        (&guest["state"], &guest["restorable"]),
        (&"filtered".into(), &false.into())
    );
    assert_eq!(guest["ram"]["present"], 0);
    let advice = &found["advice"][0];
    assert_eq!(advice["file"], "/etc/default/kdump-tools");
    assert_eq!(advice["line"], "MAKEDUMP_ARGS=\"-c -d 17\"");
    assert!(
        found["verdict"]
            .as_str()
            .expect("text")
            .contains("left the memory out")
    );
    assert_eq!(found["processes"]["whole"], 0);
}

#[test]
#[ignore = "needs the lab: scripts/test"]
fn a_dump_that_was_cut_still_says_what_it_can() {
    let dump = crashed("formats");
    for name in ["hostdump", "elf"] {
        let bytes = std::fs::read(dump.file(name)).expect("a dump");
        for part in [2, 3] {
            let cut = copy_of(&bytes[..bytes.len() / 3 * part - bytes.len() / 6]);
            let how: &[&str] = if part == 2 { &[] } else { &["--quick"] };
            let found = document(how, cut.path());
            assert_eq!(found["exit_code"], 5, "{name} {part}");
            let release = found["crash"]["release"].as_str().expect("a release");
            assert!(release.starts_with("6.1."), "{release}");
            assert!(found["crash"]["time"].as_i64() > Some(1_700_000_000));
            assert_eq!(finding(&found, "completeness").0, "bad");
            assert!(found["pages"]["truncated"].as_u64() > Some(0));
            assert!(found["verdict"].is_string());
            for guest in found["guests"].as_array().into_iter().flatten() {
                assert_ne!(guest["state"], "whole", "{name} {part}");
            }
        }
    }
}

#[test]
#[ignore = "needs the lab: scripts/test"]
fn a_damaged_page_of_a_guest_is_found_by_reading_and_by_nothing_else() {
    let dump = crashed("formats");
    let dead = DeadHost::open(&dump.path()).expect("a host");
    let pid = dead.guests().expect("guests")[0].pid;
    let set = dead.dataset(&[pid]).expect("a dataset");
    let slot = set.vms[0]
        .memslots
        .iter()
        .max_by_key(|s| s.size)
        .expect("memory");
    let inside = |at: u64| (slot.user_address..slot.user_address + slot.size).contains(&at);
    let runs = set.processes[0].mm.vmas.iter().flat_map(|v| &v.pages);
    let pfns: Vec<u64> = runs
        .filter(|r| inside(r.start))
        .filter_map(|r| match r.content {
            PageContent::Frame(pfn) => Some(pfn..pfn + r.count),
            _ => None,
        })
        .flatten()
        .collect();
    assert!(pfns.len() > 10_000, "{}", pfns.len());

    // Three of them that are stored with zlib, found by what the format says.
    let mut bytes = std::fs::read(dump.path()).expect("a dump");
    let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4")) as usize;
    let bitmaps = PAGE * (1 + u32_at(432));
    let descriptors = bitmaps + PAGE * u32_at(436);
    let dumped = bitmaps + PAGE * u32_at(436) / 2;
    let bit = |pfn: usize| bytes[dumped + pfn / 8] >> (pfn % 8) & 1;
    let mut places = Vec::new();
    for &pfn in pfns.iter().step_by(pfns.len() / 50) {
        let before: usize = (0..pfn as usize).map(|p| usize::from(bit(p))).sum();
        let desc = descriptors + before * 24;
        let (offset, size, flags) = (u32_at(desc), u32_at(desc + 8), u32_at(desc + 12));
        assert_eq!(u32_at(desc + 4), 0, "a small file");
        if flags == 1 && size > 200 && places.len() < 3 {
            places.push(offset + size / 2);
        }
    }
    assert_eq!(places.len(), 3);
    for at in places {
        for byte in &mut bytes[at..at + 16] {
            *byte = !*byte;
        }
    }
    let damaged = copy_of(&bytes);

    let found = document(&[], damaged.path());
    assert_eq!(found["pages"]["corrupt"], 3);
    let guest = &found["guests"][0];
    assert_eq!(guest["ram"]["corrupt"], 3);
    assert_eq!(guest["state"], "unreadable");
    assert_eq!(guest["restorable"], false);
    let quick = document(&["--quick"], damaged.path());
    assert_eq!(quick["guests"][0]["state"], "whole", "as far as it knows");
    let good = document(&["--quick"], &dump.path());
    assert_eq!(
        good["guests"][0]["ram"]["present"].as_u64().expect("n"),
        guest["ram"]["present"].as_u64().expect("n") + 3
    );
}

#[test]
#[ignore = "needs the lab: scripts/test"]
fn a_host_that_was_stopped_from_outside_did_not_panic() {
    let dump: PathBuf = crashed("paused").path();
    let found = document(&[], &dump);
    assert_eq!(found["crash"]["stopped_from_outside"], true);
    assert_eq!(found["crash"]["message"], Value::Null);
    assert_eq!(found["guests"][0]["state"], "whole");
}

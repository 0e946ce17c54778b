//! The command line as a user in trouble meets it: wrong files, exit codes, hints.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn vmrestore(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_vmrestore"))
        .args(arguments)
        .output()
        .expect("vmrestore starts")
}

fn file(name: &str, content: &[u8]) -> PathBuf {
    let dir = std::env::temp_dir().join(format!("vmrestore-cli-{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("makes a directory");
    let path = dir.join(name);
    std::fs::write(&path, content).expect("writes a file");
    path
}

/// A 64-bit ELF core of ARM.
fn arm_core() -> Vec<u8> {
    let mut elf = vec![0; 64];
    elf[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    elf[16] = 4; // ET_CORE
    elf[18] = 183; // EM_AARCH64
    elf[20] = 1;
    elf
}

fn refused(path: &Path, word: &str) {
    for command in ["list", "guests", "check"] {
        let output = vmrestore(&[command, &path.display().to_string()]);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(3), "{command}: {stderr}");
        assert!(stderr.starts_with("error: "), "{command}: {stderr}");
        assert!(stderr.contains("\nhint: "), "{command}: {stderr}");
        assert!(
            stderr.contains(word),
            "{command} does not say {word:?}: {stderr}"
        );
        assert!(output.stdout.is_empty(), "{command} printed data");
    }
}

#[test]
fn files_that_are_no_dump_are_named_for_what_they_are() {
    refused(&file("empty", b""), "empty");
    refused(&file("text", b"dear diary\n"), "text");
    refused(&file("arm", &arm_core()), "AARCH64");
    refused(Path::new("/nonexistent/hostdump"), "/nonexistent/hostdump");
    refused(Path::new("/"), "directory");
}

#[test]
fn a_wrong_command_line_is_a_usage_error() {
    for arguments in [&["guests"][..], &["frobnicate"], &["process", "dump"], &[]] {
        assert_eq!(vmrestore(arguments).status.code(), Some(2), "{arguments:?}");
    }
}

#[test]
fn restoring_from_what_is_no_dataset_is_refused() {
    let path = file("dataset.json", b"{}");
    let dir = path.parent().expect("has a parent").display().to_string();
    let output = vmrestore(&["restore", &dir, "--state-dir", &dir]);
    assert_eq!(
        output.status.code(),
        Some(3),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn a_healthy_host_can_be_checked_without_a_dump() {
    let output = vmrestore(&["--json", "check"]);
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("one document");
    assert_eq!(report["schema_version"], 1);
    assert_eq!(
        report["exit_code"].as_i64(),
        output.status.code().map(i64::from)
    );
    let findings = report["findings"].as_array().expect("findings");
    let names: Vec<_> = findings.iter().filter_map(|f| f["what"].as_str()).collect();
    assert_eq!(
        names,
        [
            "capture kernel",
            "crashkernel",
            "dump level",
            "kernel types",
            "keeper",
            "in place"
        ]
    );
}

#[test]
fn a_reader_that_leaves_ends_the_listing_quietly() {
    let script = format!(
        "{} list --help >/dev/null; {} check 2>&1 | true; echo ${{PIPESTATUS[0]}}",
        env!("CARGO_BIN_EXE_vmrestore"),
        env!("CARGO_BIN_EXE_vmrestore")
    );
    // The reader is gone before the first line, or it is not: panicking is wrong either way.
    let output = Command::new("bash").args(["-c", &script]).output();
    let output = output.expect("bash starts");
    let status = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    assert_ne!(status, "101");
}

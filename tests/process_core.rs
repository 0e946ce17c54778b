//! A process's core, as `extract --core` writes it, in gdb: all threads where
//! they are, registers, memory of each kind, and every note. The process is a
//! living one of this machine (tests/common/live.rs); tests/lab_bare.rs does the
//! same with one of a dead host.
//!
//! Needs root, a C compiler, gdb and readelf.

#[path = "common/live.rs"]
mod live;

use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use vmrestore::dataset::{PageContent, PageRun};
use vmrestore::extract::core::{self, CachedFiles, CoreError, ProcessWritten};
use vmrestore::sys::interrupt::Guard;

struct Victim {
    dir: PathBuf,
    child: Child,
    /// What it says its marker is.
    marker: u64,
}

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

fn start() -> Victim {
    let dir = std::env::temp_dir().join(format!("vmrestore-cored-{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("a directory");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs/cored.c");
    let program = dir.join("cored");
    let built = Command::new("cc")
        .args(["-g", "-O0", "-pthread", "-o"])
        .args([&program, &source])
        .status()
        .expect("a C compiler");
    assert!(built.success());
    let mut child = Command::new(&program)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("the test program");
    let mut said = String::new();
    let out = child.stdout.take().expect("its output");
    BufReader::new(out).read_line(&mut said).expect("a line");
    let marker = said.trim().parse().expect("a number");
    Victim { dir, child, marker }
}

fn run(command: &mut Command) -> (String, String) {
    let output = command.output().expect("it starts");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let said = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{command:?}: {said:?}");
    said
}

fn gdb(program: &Path, core: &Path, commands: &[&str]) -> (String, String) {
    let mut gdb = Command::new("gdb");
    gdb.args(["-batch", "-nx", "-ex", "set width 0"]);
    for command in commands {
        gdb.args(["-ex", command]);
    }
    run(gdb.arg(program).arg(core))
}

#[test]
fn gdb_opens_it_with_all_its_threads() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED: taking a process needs root");
        return;
    }
    let victim = start();
    let pid = victim.child.id() as i32;
    let mut taken = live::take(pid, Vec::new());
    let tids: Vec<i32> = taken.dataset.processes[0]
        .threads
        .iter()
        .map(|t| t.tid)
        .collect();
    assert_eq!(tids.len(), 4);
    taken.dataset.processes[0].cmdline = vec!["cored".into(), "with words".into()];
    let path = victim.dir.join("core");
    let guard = Guard::install();
    let write = |taken: &live::Taken, replace| -> Result<ProcessWritten, CoreError> {
        let process = &taken.dataset.processes[0];
        let cached = CachedFiles::new();
        core::write_process(
            &taken.dataset,
            process,
            &cached,
            &taken.memory,
            &path,
            replace,
            &guard,
        )
    };
    let written = write(&taken, false).expect("written");
    assert_eq!(
        (written.threads, written.missing.len()),
        (4, 0),
        "{written:?}"
    );
    assert!(written.in_files_bytes > 0 && written.zero_bytes < written.memory_bytes);
    assert!(matches!(
        write(&taken, false),
        Err(CoreError::Exists { .. })
    ));
    let mode = path.metadata().expect("the core").permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "others may read what its memory held");

    let program = victim.dir.join("cored");
    let (said, complaints) = gdb(
        &program,
        &path,
        &[
            "info threads",
            "thread apply all -q backtrace",
            "printf \"marker %lu\\n\", marker",
            "printf \"shared %lu\\n\", shared[600]",
            "printf \"records %d %d %s\\n\", records->number, records->next->number, records->next->next->text",
            "thread apply all -q printf \"own %d of %ld\\n\", own, $_thread",
            "thread apply all -q print/x $r15",
            "thread apply all -q print/x $xmm15.v2_int64",
            "print $_siginfo.si_signo",
            "info auxv",
            "info proc",
            "info proc mappings",
        ],
    );
    println!("{said}{complaints}");
    for tid in &tids {
        assert!(
            said.contains(&format!("LWP {tid}")),
            "thread {tid} is not there"
        );
    }
    for words in [
        " in sleeper (",
        " in reader (",
        "spinner (",
        " in main (",
        "records 100 200 record 3",
        "own 11 of ",
        "own 22 of ",
        "own 33 of ",
        "= 0x5ca1ab1e\n",
        "= {0x1122334455667788, 0x99aabbccddeeff00}",
        "AT_SYSINFO_EHDR",
        "AT_PHDR",
        "exe = 'cored with words'",
        "/cored\n",
        "libc.so.6\n",
    ] {
        assert!(said.contains(words), "gdb does not say {words:?}");
    }
    assert!(said.contains(&format!("marker {}\n", victim.marker)));
    assert!(said.contains(&format!("shared {}\n", victim.marker + 1)));
    assert!(!complaints.contains("arning"), "{complaints}");

    let (notes, complaints) = run(Command::new("readelf").arg("-nW").arg(&path));
    for (note, count) in [
        ("NT_PRSTATUS", 4),
        ("NT_PRPSINFO", 1),
        ("NT_SIGINFO", 1),
        ("NT_AUXV", 1),
        ("NT_FILE", 1),
        ("NT_FPREGSET", 4),
        ("NT_X86_XSTATE", 4),
    ] {
        assert_eq!(notes.matches(note).count(), count, "{note}");
    }
    assert_eq!(complaints, "");

    // A page that the dump has not got is no page of zeros: gdb says so.
    let marker = run(Command::new("nm").arg(&program)).0;
    let place = |name: &str| -> u64 {
        let line = marker.lines().find(|l| l.ends_with(&format!(" {name}")));
        let word = line.and_then(|l| l.split(' ').next()).expect("a symbol");
        u64::from_str_radix(word, 16).expect("an address")
    };
    let mm = &mut taken.dataset.processes[0].mm;
    let base = mm.vmas.iter().map(|v| v.start).min().expect("a mapping");
    let at = (base + place("marker")) & !0xfff;
    let vma = mm.vmas.iter_mut().find(|v| (v.start..v.end).contains(&at));
    let vma = vma.expect("its mapping");
    let mut runs = Vec::new();
    for run in &vma.pages {
        for n in 0..run.count {
            let start = run.start + n * 4096;
            let content = match run.content {
                _ if start == at => PageContent::Filtered,
                PageContent::Stored(from) => PageContent::Stored(from + n * 4096),
                other => other,
            };
            let count = 1;
            runs.push(PageRun {
                start,
                count,
                content,
            });
        }
    }
    vma.pages = runs;
    let written = write(&taken, true).expect("written");
    assert_eq!(
        written.missing,
        [("makedumpfile left it out".to_owned(), 4096)]
    );
    let (said, complaints) = gdb(&program, &path, &["info threads", "print marker"]);
    assert!(said.contains("LWP"), "{said}");
    println!("{said}{complaints}");
    assert!(!said.contains(&victim.marker.to_string()));
}

//! Dumps that come through a pipe, and dumps with something behind them.

mod synth;

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use synth::{
    Kdump, Machine, Noise, PAGE, Slot, TempFile, flatten, flatten_without_padding, store_mixed,
};
use vmrestore::dump::{Dump, Missing, OpenError, Opening, PageState, PhysicalMemory};

/// A pipe with a name.
struct Fifo(PathBuf);

impl Fifo {
    fn new() -> Fifo {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "vmrestore-fifo-{}-{}",
            std::process::id(),
            COUNT.fetch_add(1, Ordering::Relaxed)
        );
        let path = std::env::temp_dir().join(name);
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        Fifo(path)
    }
}

impl Drop for Fifo {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Opens a dump whose bytes come through a pipe; says also how many bytes were taken.
fn through_a_pipe(bytes: &[u8]) -> (Result<Dump, OpenError>, u64, usize) {
    let fifo = Fifo::new();
    let mut seen = 0;
    let (opened, written) = thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut pipe = File::create(&fifo.0).unwrap();
            let mut written = 0;
            for chunk in bytes.chunks(7777) {
                if pipe.write_all(chunk).is_err() {
                    break;
                }
                written += chunk.len();
            }
            written
        });
        let opened = Opening::of(&fifo.0).on_progress(|n| seen = n).open();
        (opened, writer.join().unwrap())
    });
    (opened, seen, written)
}

fn check(dump: &Dump, machine: &Machine) {
    let mut page = [0; PAGE];
    for (pfn, slot) in machine.slots.iter().enumerate() {
        let read = dump.read_physical((pfn * PAGE) as u64, &mut page);
        match slot {
            Slot::Data(data) => {
                read.unwrap();
                assert_eq!(page, **data, "page frame {pfn}");
            }
            Slot::Filtered => assert_eq!(read.unwrap_err().missing(), Some(Missing::Filtered)),
            Slot::NotRam => assert_eq!(read.unwrap_err().missing(), Some(Missing::NotRam)),
        }
    }
    let (present, filtered, not_ram) = machine.counts();
    let counts = dump.page_counts();
    assert_eq!((counts.present, counts.truncated), (present, 0));
    assert_eq!((counts.filtered, counts.not_ram), (filtered, not_ram));
    assert_eq!(dump.incomplete(), None);
}

fn images(machine: &Machine, noise: &mut Noise) -> Vec<Vec<u8>> {
    let mixed = Kdump {
        store: store_mixed,
        ..Kdump::default()
    };
    let kdump = machine.kdump(mixed, noise);
    vec![
        flatten(&kdump, 5000, true),
        flatten_without_padding(&kdump, machine.slots.len()),
        flatten(&machine.elf(), 100_000, true),
        machine.elf(),
        kdump,
    ]
}

#[test]
fn every_format_can_come_through_a_pipe() {
    let mut noise = Noise(21);
    for _ in 0..4 {
        let machine = Machine::random(&mut noise, 600);
        for bytes in images(&machine, &mut noise) {
            let (dump, seen, _) = through_a_pipe(&bytes);
            check(&dump.unwrap(), &machine);
            assert_eq!(seen, bytes.len() as u64);
        }
    }
}

#[test]
fn a_pipe_that_breaks_leaves_what_came() {
    let mut noise = Noise(22);
    let machine = Machine::random(&mut noise, 600);
    let kdump = machine.kdump(Kdump::default(), &mut noise);
    for bytes in [
        flatten(&kdump, 5000, false),
        flatten_without_padding(&kdump, 600),
        flatten(&machine.elf(), 100_000, false),
        machine.elf(),
        kdump,
    ] {
        let cut = &bytes[..bytes.len() * 3 / 4];
        let dump = through_a_pipe(cut).0.unwrap();
        assert!(dump.incomplete().unwrap().contains("cut short"));
        // The same as of the file that was cut there.
        let file = TempFile::new(cut);
        let same = Dump::open(file.path()).unwrap();
        assert!(same.page_counts().truncated > 0);
        assert_eq!(dump.page_counts(), same.page_counts());
        let (mut a, mut b) = ([0; PAGE], [0; PAGE]);
        for pfn in 0..600 {
            assert_eq!(
                dump.page_state(pfn),
                same.page_state(pfn),
                "page frame {pfn}"
            );
            if dump.page_state(pfn) == PageState::Present {
                let addr = pfn * PAGE as u64;
                let reads = (
                    dump.read_physical(addr, &mut a).is_ok(),
                    same.read_physical(addr, &mut b).is_ok(),
                );
                assert_eq!(reads, (true, true));
                assert_eq!(a, b);
            }
        }
    }
}

#[test]
fn what_is_no_dump_is_refused_before_it_is_read() {
    let text = "kernel panic - not syncing\n".repeat(1_000_000);
    let (opened, _, written) = through_a_pipe(text.as_bytes());
    let error = opened.unwrap_err();
    assert!(error.to_string().contains("a text file"), "{error}");
    assert!(written < 4 << 20, "{written} bytes of it were taken");
    // In the way of a dump, and none.
    let flat = flatten(text.as_bytes(), 65536, false);
    let error = through_a_pipe(&flat).0.unwrap_err();
    assert!(error.to_string().contains("a text file"), "{error}");
    let error = through_a_pipe(b"").0.unwrap_err();
    assert!(error.to_string().contains("it is empty"), "{error}");
}

#[test]
fn parts_may_come_through_pipes() {
    let mut noise = Noise(23);
    let machine = Machine::random(&mut noise, 300);
    let part = |range, noise: &mut Noise| {
        let options = Kdump {
            part: Some(range),
            ..Kdump::default()
        };
        machine.kdump(options, noise)
    };
    let first = TempFile::new(&part((0, 120), &mut noise));
    let second = flatten(&part((120, 300), &mut noise), 4096, false);
    let fifo = Fifo::new();
    let dump = thread::scope(|scope| {
        scope.spawn(|| std::fs::write(&fifo.0, &second).unwrap());
        Opening::of(first.path()).part(&fifo.0).open().unwrap()
    });
    check(&dump, &machine);
}

/// The command, with bytes on its standard input.
fn list(arguments: &str, bytes: &[u8]) -> (Option<i32>, String) {
    let script = format!("{} list - {arguments}", env!("CARGO_BIN_EXE_vmrestore"));
    let mut child = Command::new("bash")
        .args(["-c", &format!("trap '' XFSZ; ulimit -f 64; {script}")])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let output = thread::scope(|scope| {
        scope.spawn(move || {
            let _ = stdin.write_all(bytes);
        });
        child.wait_with_output().unwrap()
    });
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code(), stderr)
}

#[test]
fn standard_input_and_a_directory_without_room() {
    let mut noise = Noise(24);
    let small = Machine::random(&mut noise, 12);
    // Read; but there is no kernel in it.
    let (code, stderr) = list("", &small.kdump(Kdump::default(), &mut noise));
    assert_eq!(code, Some(3), "{stderr}");
    assert!(stderr.contains("dead kernel"), "{stderr}");

    let large = Machine::random(&mut noise, 600);
    let (code, stderr) = list("--spool-dir /var/tmp", &large.elf());
    assert_eq!(code, Some(6), "{stderr}");
    for words in ["temporary file in /var/tmp", "65536 bytes", "--spool-dir"] {
        assert!(stderr.contains(words), "{stderr}: {words}");
    }
    let (code, stderr) = list("--spool-dir /nonexistent/dir", &large.elf());
    assert_eq!(code, Some(6), "{stderr}");
    assert!(stderr.contains("/nonexistent/dir"), "{stderr}");
}

#[test]
fn a_partition_is_longer_than_the_dump_at_its_begin() {
    let mut noise = Noise(25);
    let machine = Machine::random(&mut noise, 600);
    for bytes in images(&machine, &mut noise) {
        let mut partition = bytes;
        for _ in 0..200_000 {
            partition.extend_from_slice(&noise.next().to_ne_bytes());
        }
        let file = TempFile::new(&partition);
        check(&Dump::open(file.path()).unwrap(), &machine);
    }
}

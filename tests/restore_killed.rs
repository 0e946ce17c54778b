//! `kill -9` of vmrestore at any moment of a restore: nothing of the process is
//! left, and the same command run again brings it back. A file has pages that
//! were not on the disk when the host died: in the end it has them all, and what
//! was cut off in the middle of writing them was not taken for a stranger's work.
//!
//! Needs root and a C compiler, as tests/restore_live.rs.

#[path = "common/live.rs"]
mod live;
#[path = "common/living.rs"]
mod living;

use living::{Killed, Living, assert_unbroken, root_or_say_so};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use vmrestore::dataset::{Inode, InodeKind, ObjectId};

const KILLS: u32 = 50;

/// A restore from a directory of `extract`, in a process of its own.
fn restore(directory: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vmrestore"));
    command
        .arg("restore")
        .arg(directory.join("dataset"))
        .arg("--state-dir")
        .arg(directory.join("state"))
        .stdin(Stdio::null());
    command
}

/// The process is there, and not merely its remains.
fn lives(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(')').next().unwrap_or("").starts_with(" Z"))
}

#[test]
fn killed_at_any_moment_it_can_be_run_again() {
    if !root_or_say_so() {
        return;
    }
    let mut noise = 0x9e37_79b9_u64;
    let (mut killed, mut too_late, mut writing) = (0, 0, 0);
    // How long a restore takes here, learnt on the way.
    let mut whole = Duration::from_millis(300);
    while killed < KILLS {
        let mut living = Living::start("killed", "living");
        let pid = living.pid();
        let mut taken = living.take();
        living.kill();
        taken.dataset.crash_id = "killed".into();
        let before = living.ticks();
        let work = tempfile(pid);
        let (file, content) = unwritten(&mut taken, &work, noise);
        vmrestore::extract::directory::write(&taken.dataset, &taken.memory, &work.join("dataset"))
            .expect("written");
        // As often as it is killed in time, the same dataset is tried again.
        let mut finished = false;
        while killed < KILLS && !finished {
            noise = noise
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            let moment = whole.mul_f64((noise >> 33) as f64 / f64::from(u32::MAX >> 1));
            let mut command = restore(&work);
            let mut child = command
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .expect("starts");
            std::thread::sleep(moment);
            finished = child.try_wait().expect("waits").is_some();
            child.kill().expect("kills");
            child.wait().expect("ends");
            if finished || lives_on(pid, &work) {
                // It came too late: the process runs, and the journal says so.
                finished = true;
                too_late += 1;
                whole = whole.mul_f64(0.8);
            } else {
                killed += 1;
                writing += u32::from(intentions(&work) > 0);
                whole = whole.mul_f64(1.1);
            }
        }
        if !finished {
            let output = restore(&work).output().expect("runs");
            assert!(
                matches!(output.status.code(), Some(0 | 8)),
                "after {killed} kills: {}",
                String::from_utf8_lossy(&output.stderr)
            );
        }
        // Where the last one's remains still had its PID, it is another here.
        let guard = Killed(record(pid, &work).expect("the journal knows it").0);
        let after = living.await_ticks(before.len() + 10);
        assert_unbroken(&after, pid);
        assert!(
            fs::read(&file).expect("the file") == content,
            "pages were lost"
        );
        assert_eq!(intentions(&work), 0, "an intention stays behind");
        let again = restore(&work).output().expect("runs");
        assert_eq!(
            again.status.code(),
            Some(5),
            "a second time: {}",
            String::from_utf8_lossy(&again.stderr)
        );
        let here = guard.0;
        drop(guard);
        while lives(here) {
            std::thread::sleep(Duration::from_millis(5));
        }
        fs::remove_dir_all(&work).expect("cleans up");
    }
    eprintln!("{killed} kills in time, {writing} of them while it wrote back; {too_late} too late");
}

/// Files that the journal says were being written to.
fn intentions(work: &Path) -> usize {
    fs::read_dir(work.join("state/killed"))
        .into_iter()
        .flatten()
        .flatten()
        .filter(|e| e.file_name().to_string_lossy().starts_with("touching"))
        .count()
}

/// Adds to the dataset a file of which most pages are in the dump alone, every
/// other run of them, and which the dead host had made longer. Gives its path
/// and what it must hold in the end.
fn unwritten(taken: &mut live::Taken, work: &Path, noise: u64) -> (PathBuf, Vec<u8>) {
    const OLD: usize = 4 << 20;
    const NEW: usize = (12 << 20) - 1000;
    const RUN: usize = 64 << 12;
    let path = work.join("file");
    fs::write(&path, vec![b'x'; OLD]).expect("writes");
    fs::File::open(&path)
        .and_then(|f| f.sync_all())
        .expect("syncs");
    let mut content = vec![b'x'; OLD];
    content.resize(NEW.next_multiple_of(4096), 0);
    let mut dirty = Vec::new();
    for (n, run) in content.chunks_mut(RUN).enumerate().step_by(2) {
        for (i, byte) in run.iter_mut().enumerate() {
            *byte = (noise >> (i % 56)) as u8 ^ i as u8 ^ n as u8;
        }
        dirty.push(taken.memory.store((n * RUN) as u64, run));
    }
    content.truncate(NEW);
    let meta = fs::metadata(&path).expect("stats");
    let time = meta.mtime() * 1_000_000_000 + meta.mtime_nsec();
    taken.dataset.inodes.push(Inode {
        id: ObjectId(1 << 50),
        path: path.display().to_string(),
        device: "vda".into(),
        fs_uuid: None,
        fs_type: "ext4".into(),
        number: meta.ino(),
        generation: None,
        kind: InodeKind::Regular,
        mode: meta.mode(),
        uid: 0,
        gid: 0,
        links: 1,
        size: NEW as u64,
        // A change from here on is later than what the dead host knew of.
        mtime_ns: time,
        ctime_ns: time,
        writable: true,
        dirty,
        uncommitted: Vec::new(),
        blocks: Vec::new(),
        block: None,
        newborn: false,
    });
    (path, content)
}

/// Whether the process runs although vmrestore was killed. What dies with it
/// takes a moment to be gone.
fn lives_on(pid: i32, work: &Path) -> bool {
    let begin = Instant::now();
    while lives(pid) || record(pid, work).is_some_and(|r| lives(r.0)) {
        let runs = record(pid, work).is_some_and(|r| r.1);
        if runs || begin.elapsed() > Duration::from_secs(2) {
            return true;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    false
}

/// What the journal says: the PID that it has here, and whether it runs.
fn record(pid: i32, work: &Path) -> Option<(i32, bool)> {
    let path = work.join(format!("state/killed/resumed-{pid}.json"));
    let record: serde_json::Value = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
    let here = i32::try_from(record.get("as_pid")?.as_i64()?).ok()?;
    Some((here, record.get("running")?.as_bool()?))
}

fn tempfile(pid: i32) -> PathBuf {
    let dir = std::env::temp_dir().join(format!("vmrestore-killed-{pid}-work"));
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(&dir).expect("a directory");
    dir
}

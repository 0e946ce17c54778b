//! A file of a tmpfs went with the host: it is made again with the process
//! that had it, and taken away with it.
//!
//! Needs root, a tmpfs at /dev/shm and a C compiler.

#[path = "common/live.rs"]
mod live;
#[path = "common/living.rs"]
mod living;

use living::{Killed, Living, root_or_say_so};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Mutex;
use vmrestore::dataset::{Inode, InodeKind, ObjectId};
use vmrestore::restore::{Options, RestoreError, prepare};

/// PIDs are the machine's, and tests want theirs: one at a time.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Two pages, the second not to its end, with a page of nothing before them.
const SIZE: usize = 3 * 4096 - 1000;

fn content() -> Vec<u8> {
    let text = |n: usize| if n < 4096 { 0 } else { (n % 251) as u8 };
    (0..SIZE).map(text).collect()
}

/// A living process, looked at, with such a file added to what it had.
fn taken(name: &str) -> (Living, live::Taken, PathBuf) {
    let living = Living::start(name, "living");
    let mut taken = living.take();
    let path = PathBuf::from(format!(
        "/dev/shm/vmrestore-{name}-{}/file",
        std::process::id()
    ));
    let mut bytes = content();
    // What is behind the end of a file in its last page is no data.
    bytes.resize(3 * 4096, 0xee);
    let run = taken.memory.store(4096, &bytes[4096..]);
    taken.dataset.inodes.push(Inode {
        id: ObjectId(77),
        path: path.display().to_string(),
        device: "tmpfs".into(),
        fs_uuid: None,
        fs_type: "tmpfs".into(),
        number: 77,
        generation: None,
        kind: InodeKind::Regular,
        mode: 0o100_640,
        uid: 0,
        gid: 0,
        links: 1,
        size: SIZE as u64,
        mtime_ns: 1_600_000_000_000_000_000,
        ctime_ns: 0,
        writable: true,
        dirty: vec![run],
        uncommitted: Vec::new(),
        blocks: Vec::new(),
        block: None,
        newborn: false,
    });
    (living, taken, path)
}

#[test]
fn it_is_there_again_with_its_content() {
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(|e| e.into_inner());
    if !root_or_say_so() {
        return;
    }
    let (mut living, taken, path) = taken("volatile");
    living.kill();
    let restored = prepare(&taken.dataset, &taken.memory, &Options::default())
        .expect("prepared")
        .resume()
        .expect("resumed");
    let killed = Killed(restored[0].pid);
    assert!(fs::read(&path).expect("the file") == content());
    let meta = fs::metadata(&path).expect("the file");
    assert_eq!(meta.permissions().mode() & 0o7777, 0o640);
    assert_eq!(
        meta.modified().expect("a time"),
        std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_600_000_000)
    );
    drop(killed);

    // Somebody has made it already: as good.
    let prepared = prepare(&taken.dataset, &taken.memory, &Options::default()).expect("prepared");
    drop(prepared);
    assert!(path.exists(), "it was not ours to take away");

    // But not with another content.
    let mut other = content();
    other[5000] ^= 1;
    fs::write(&path, &other).expect("written");
    match prepare(&taken.dataset, &taken.memory, &Options::default()) {
        Err(RestoreError::FileChanged { now, .. }) => assert!(now.contains("4096"), "{now}"),
        other => panic!("{:?}", other.map(|p| p.processes().to_vec())),
    }
    assert!(fs::read(&path).expect("the file") == other);
    fs::remove_dir_all(path.parent().expect("a directory")).expect("cleans up");
}

#[test]
fn a_restore_that_fails_leaves_none() {
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(|e| e.into_inner());
    if !root_or_say_so() {
        return;
    }
    let (mut living, taken, path) = taken("volatile-not");
    living.kill();
    let prepared = prepare(&taken.dataset, &taken.memory, &Options::default()).expect("prepared");
    assert!(path.exists());
    drop(prepared);
    assert!(!path.exists());
    let dry = Options {
        dry_run: true,
        ..Options::default()
    };
    drop(prepare(&taken.dataset, &taken.memory, &dry).expect("would do"));
    assert!(!path.exists());
    let _ = fs::remove_dir_all(path.parent().expect("a directory"));
}

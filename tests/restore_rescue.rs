//! Data written past the page cache, into blocks that a crash takes from the
//! file again: a real file system, and a crash of it, which is a copy of its
//! disk before its journal has committed.
//!
//! Needs root, loop devices, mke2fs and mkfs.xfs.

#[path = "common/empty.rs"]
mod empty;

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use vmrestore::dataset::{
    BlockRun, Dataset, Inode, InodeKind, ObjectId, PageContent, PageRun, PageSource,
    PageSourceError,
};
use vmrestore::restore::disks::{self, DiskError, Overrides};
use vmrestore::restore::journal::Journal;
use vmrestore::sys::file_facts;

/// The dump has no page of the file.
struct Nothing;

impl PageSource for Nothing {
    fn read_pages(
        &self,
        run: &PageRun,
        _first: u64,
        _count: u64,
        _out: &mut [u8],
    ) -> Result<(), PageSourceError> {
        Err(PageSourceError {
            at: run.start,
            content: run.content,
            why: "there is none".into(),
        })
    }
}

fn run(line: &str) -> bool {
    let status = Command::new("sh").args(["-c", line]).status();
    status.is_ok_and(|status| status.success())
}

/// A directory with a file system mounted in it; unmounted when it goes.
struct Scene {
    dir: PathBuf,
}

impl Scene {
    fn mount(&self, image: &str, options: &str) {
        let line = format!(
            "mount -o loop{options} {0}/{image} {0}/at",
            self.dir.display()
        );
        assert!(run(&line), "{line}");
    }

    fn unmount(&self) -> bool {
        run(&format!("umount {}/at", self.dir.display()))
    }

    fn file(&self) -> PathBuf {
        self.dir.join("at/disk")
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        run(&format!("umount {}/at 2>/dev/null", self.dir.display()));
        let _ = fs::remove_dir_all(&self.dir);
    }
}

const SIZE: u64 = 8 << 20;

/// A file of holes (or of blocks that are `reserved` for it) into which blocks
/// are written past the page cache, and the disk as a crash leaves it then. Gives what the dead kernel knew, and what the
/// file held.
fn crashed(
    name: &str,
    make: &str,
    options: &str,
    reserved: bool,
) -> Option<(Scene, Inode, Vec<u8>)> {
    let dir = format!("vmrestore-{name}-{reserved}-{}", std::process::id());
    let dir = std::env::temp_dir().join(dir);
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(dir.join("at")).expect("a directory");
    let scene = Scene { dir };
    let base = scene.dir.display();
    let made = run(&format!(
        "truncate -s 320M {base}/before.img && {make} {base}/before.img >/dev/null"
    ));
    assert!(made, "{make}: scripts/setup installs what it needs");
    if !run(&format!(
        "mount -o loop{options} {base}/before.img {base}/at"
    )) {
        eprintln!("SKIPPED: loop mounts need root, and a kernel that has them");
        return None;
    }
    let file = scene.file();
    File::create(&file)
        .and_then(|f| f.set_len(SIZE))
        .expect("an empty image");
    if reserved {
        let line = format!("fallocate -l {SIZE} {}", file.display());
        assert!(run(&line), "{line}");
    }
    let block: Vec<u8> = (0..4096u32).map(|i| (i * 7 % 251) as u8).collect();
    fs::write(scene.dir.join("block"), &block).expect("a block");
    let put = |at: u64| {
        let line = format!(
            "dd if={base}/block of={} bs=4096 seek={at} count=1 oflag=direct conv=notrunc 2>/dev/null",
            file.display()
        );
        assert!(run(&line), "{line}");
    };
    put(7);
    assert!(run(&format!("sync -f {}", file.display())));
    let mut content = vec![0; SIZE as usize];
    // Some alone, some together, and the last of the file.
    for at in [3, 100, 101, 102, 103, 900, SIZE / 4096 - 1] {
        put(at);
    }
    for at in [3, 7, 100, 101, 102, 103, 900, SIZE / 4096 - 1] {
        let at = at as usize * 4096;
        content[at..at + 4096].copy_from_slice(&block);
    }
    let open = File::open(&file).expect("opens");
    let then = file_facts::extents(&open).expect("its map");
    let meta = open.metadata().expect("stats");
    drop(open);
    let line = format!("cp --sparse=always {base}/before.img {base}/after.img");
    assert!(run(&line), "{line}");
    assert!(scene.unmount());
    let time = |s: i64, ns: i64| s * 1_000_000_000 + ns;
    let inode = Inode {
        id: ObjectId(1),
        path: file.display().to_string(),
        device: "loop0".into(),
        fs_uuid: None,
        fs_type: name.into(),
        number: meta.ino(),
        generation: None,
        kind: InodeKind::Regular,
        mode: meta.mode(),
        uid: 0,
        gid: 0,
        links: 1,
        size: SIZE,
        mtime_ns: time(meta.mtime(), meta.mtime_nsec()),
        ctime_ns: time(meta.ctime(), meta.ctime_nsec()),
        writable: true,
        dirty: vec![],
        uncommitted: vec![],
        blocks: then
            .iter()
            .filter(|extent| extent.written)
            .map(|extent| BlockRun {
                start: extent.start,
                len: extent.len,
                place: extent.place,
            })
            .collect(),
        block: None,
        newborn: false,
    };
    Some((scene, inode, content))
}

fn dataset(inode: Inode) -> Dataset {
    Dataset {
        inodes: vec![inode],
        ..empty::dataset("rescue")
    }
}

fn given_back(name: &str, make: &str, options: &str) {
    let Some((scene, inode, content)) = crashed(name, make, options, false) else {
        return;
    };
    let base = scene.dir.display().to_string();
    assert!(run(&format!("cp {base}/after.img {base}/again.img")));
    scene.mount("after.img", "");
    let file = scene.file();
    let left = fs::read(&file).expect("reads");
    assert!(left != content, "{name}: the crash took nothing");
    let dataset = dataset(inode);
    let journal = Journal::open(Path::new(&format!("{base}/state")), "rescue").expect("opens");
    // Unless somebody asks for it, the file is refused.
    let wrong = disks::check(&dataset, Some(&journal), Overrides::default()).expect_err("lost");
    assert!(is_lost(&wrong), "{name}: {wrong:?}");
    let rescue = Overrides {
        rescue_blocks: true,
        ..Overrides::default()
    };
    disks::check(&dataset, Some(&journal), rescue).expect("it can be had");
    let done = disks::write_back(&dataset, &Nothing, &journal, rescue).expect("writes back");
    assert!(done.rescued >= 6 * 4096, "{done:?}");
    assert!(fs::read(&file).expect("reads") == content, "{name}");
    // Cut off right after that, it is done again and does no harm.
    disks::check(&dataset, Some(&journal), rescue).expect("our own work");
    disks::write_back(&dataset, &Nothing, &journal, rescue).expect("once more");
    assert!(fs::read(&file).expect("reads") == content, "{name}");
    assert!(scene.unmount());

    // Somebody else has the blocks now.
    scene.mount("again.img", "");
    run(&format!(
        "dd if=/dev/zero of={base}/at/full bs=1M 2>/dev/null; sync"
    ));
    let journal = Journal::open(Path::new(&format!("{base}/other")), "rescue").expect("opens");
    let all = Overrides {
        force: true,
        rescue_blocks: true,
    };
    let wrong = disks::check(&dataset, Some(&journal), all).expect_err("lost");
    assert!(is_lost(&wrong), "{name}: {wrong:?}");
}

/// One page of the file, which comes from the dump.
struct OnePage(u8);

impl PageSource for OnePage {
    fn read_pages(
        &self,
        _run: &PageRun,
        _first: u64,
        _count: u64,
        out: &mut [u8],
    ) -> Result<(), PageSourceError> {
        out.fill(self.0);
        Ok(())
    }
}

/// The attempt is cut off in the middle, and then others take the blocks.
fn cut_off(name: &str, make: &str, options: &str) {
    let Some((scene, mut inode, mut content)) = crashed(name, make, options, false) else {
        return;
    };
    let base = scene.dir.display().to_string();
    scene.mount("after.img", "");
    let file = scene.file();
    let left = fs::read(&file).expect("reads");
    // A page that the dump has not, after all, ends the first attempt.
    let page = 50;
    inode.dirty = vec![PageRun {
        start: page * 4096,
        count: 1,
        content: PageContent::Frame(1),
    }];
    content[page as usize * 4096..(page as usize + 1) * 4096].fill(0x5a);
    let dataset = dataset(inode);
    let state = format!("{base}/at/state");
    let journal = Journal::open(Path::new(&state), "rescue").expect("opens");
    let rescue = Overrides {
        rescue_blocks: true,
        ..Overrides::default()
    };
    disks::check(&dataset, Some(&journal), rescue).expect("it can be had");
    disks::write_back(&dataset, &Nothing, &journal, rescue).expect_err("cut off");
    assert!(fs::read(&file).expect("reads") != left, "it had begun");
    // Of what it wrote some did not reach the disk, and where that lay is
    // somebody else's now.
    let path = file.display();
    assert!(run(&format!(
        "fallocate -p -o $((100*4096)) -l $((4*4096)) {path} && \
         dd if=/dev/urandom of={base}/at/other bs=1M count=200 2>/dev/null; sync"
    )));
    drop(journal);
    let journal = Journal::open(Path::new(&state), "rescue").expect("opens");
    let page = OnePage(0x5a);
    disks::check(&dataset, Some(&journal), Overrides::default()).expect("it is in the journal");
    disks::write_back(&dataset, &page, &journal, Overrides::default()).expect("writes back");
    assert!(fs::read(&file).expect("reads") == content, "{name}");
    let kept = fs::read_dir(format!("{state}/rescue")).expect("the journal");
    let kept = kept.flatten().map(|e| e.file_name().into_string());
    assert!(
        kept.flatten().all(|name| !name.starts_with("rescued")),
        "it is no longer needed"
    );
    drop(journal);
    assert!(scene.unmount());
}

/// What was reserved for the file is nobody else's: it comes back unasked.
fn comes_back_unasked(name: &str, make: &str, options: &str) {
    let Some((scene, inode, content)) = crashed(name, make, options, true) else {
        return;
    };
    scene.mount("after.img", "");
    let file = scene.file();
    let left = fs::read(&file).expect("reads");
    assert!(left != content, "{name}: the crash took nothing");
    let dataset = dataset(inode);
    let journal = Journal::open(&scene.dir.join("state"), "rescue").expect("opens");
    let plain = Overrides::default();
    disks::check(&dataset, Some(&journal), plain).expect("nothing is lost");
    let done = disks::write_back(&dataset, &Nothing, &journal, plain).expect("writes back");
    assert_eq!(done.rescued, 0);
    assert!(fs::read(&file).expect("reads") == content, "{name}");
    assert!(scene.unmount());
}

fn is_lost(wrong: &[DiskError]) -> bool {
    wrong
        .iter()
        .any(|e| matches!(e, DiskError::LostBlocks { .. }))
}

#[test]
fn what_ext4_took_is_given_back() {
    given_back("ext4", "mke2fs -q -F -t ext4 -b 4096", ",commit=300");
}

#[test]
fn what_ext4_took_is_given_back_in_two_attempts() {
    cut_off("ext4-cut", "mke2fs -q -F -t ext4 -b 4096", ",commit=300");
}

#[test]
fn what_xfs_took_is_given_back_in_two_attempts() {
    cut_off("xfs-cut", "mkfs.xfs -q -f", "");
}

#[test]
fn what_was_reserved_on_ext4_comes_back() {
    comes_back_unasked("ext4", "mke2fs -q -F -t ext4 -b 4096", ",commit=300");
}

#[test]
fn what_was_reserved_on_xfs_comes_back() {
    comes_back_unasked("xfs", "mkfs.xfs -q -f", "");
}

#[test]
fn what_xfs_took_is_given_back() {
    given_back("xfs", "mkfs.xfs -q -f", "");
}

//! Files that moved on are refused; unwritten pages reach the disk.

use super::*;
use crate::dataset::{
    Host, Irqchip, ObjectId, PageContent, PageRun, PageSourceError, SCHEMA_VERSION, Vm, VmCaps,
    VmClock,
};
use crate::sys::interrupt::Guard;
use std::fs;
use std::path::PathBuf;

/// Page N is full of the byte N.
struct Numbered;

impl PageSource for Numbered {
    fn read_pages(
        &self,
        run: &PageRun,
        first: u64,
        _count: u64,
        out: &mut [u8],
    ) -> Result<(), PageSourceError> {
        for (i, page) in out.chunks_mut(PAGE as usize).enumerate() {
            page.fill((run.start / PAGE + first + i as u64) as u8);
        }
        Ok(())
    }
}

struct Scene {
    dir: PathBuf,
    dataset: Dataset,
    journal: Journal,
}

impl Drop for Scene {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// A file of one page of `x` on the disk; the dead kernel had two and a half
/// pages of it, the last ones dirty.
const FORCE: Overrides = Overrides {
    force: true,
    rescue_blocks: false,
};

fn scene(name: &str) -> Scene {
    let dir = std::env::temp_dir().join(format!("vmrestore-disks-{name}-{}", std::process::id()));
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(&dir).expect("makes a directory");
    let path = dir.join("disk.img");
    fs::write(&path, [b'x'; 4096]).expect("writes the file");
    let meta = fs::metadata(&path).expect("stats");
    let inode = Inode {
        uid: 0,
        gid: 0,
        id: ObjectId(1),
        path: path.display().to_string(),
        device: "vdb".into(),
        fs_uuid: None,
        fs_type: "ext4".into(),
        number: meta.ino(),
        generation: None,
        kind: InodeKind::Regular,
        mode: 0o100644,
        links: 1,
        size: 10_000,
        mtime_ns: mtime(&meta) + 5_000_000_000,
        ctime_ns: ctime(&meta) + 5_000_000_000,
        writable: true,
        dirty: vec![PageRun {
            start: 4096,
            count: 2,
            content: PageContent::Frame(77),
        }],
        uncommitted: vec![],
        blocks: vec![],
        block: None,
        newborn: false,
    };
    let host = Host {
        release: String::new(),
        version: String::new(),
        hostname: String::new(),
        realtime_ns: 0,
        monotonic_ns: 0,
        boottime_ns: 0,
        tsc_khz: 0,
        tsc: 0,
    };
    let dataset = Dataset {
        schema_version: SCHEMA_VERSION,
        crash_id: "c".into(),
        host,
        processes: vec![],
        zombies: vec![],
        files: vec![],
        pipes: vec![],
        inodes: vec![inode],
        shared_memory: vec![],
        sysv: vec![],
        message_queues: vec![],
        vms: vec![],
        outside: Vec::new(),
        swap: Vec::new(),
        fidelity: vec![],
    };
    let journal = Journal::open(&dir.join("state"), "c").expect("opens the journal");
    Scene {
        dir,
        dataset,
        journal,
    }
}

#[test]
fn unwritten_pages_reach_the_disk_and_a_second_run_accepts_its_own_work() {
    let s = scene("write");
    check(&s.dataset, Some(&s.journal), Overrides::default()).expect("an older file is fit");
    let done =
        write_back(&s.dataset, &Numbered, &s.journal, Overrides::default()).expect("writes back");
    assert_eq!(
        done,
        WrittenBack {
            files: 1,
            bytes: 10_000 - 4096,
            rescued: 0,
        }
    );
    let now = fs::read(&s.dataset.inodes[0].path).expect("reads");
    assert_eq!(now.len(), 10_000);
    assert!(now[..4096].iter().all(|b| *b == b'x'));
    assert!(now[4096..8192].iter().all(|b| *b == 1));
    assert!(now[8192..].iter().all(|b| *b == 2));
    let meta = fs::metadata(&s.dataset.inodes[0].path).expect("stats");
    assert_eq!(mtime(&meta), s.dataset.inodes[0].mtime_ns);
    // Its change time is now's, later than the crash: only the journal knows
    // that this was ours.
    let mut dataset = s.dataset.clone();
    dataset.inodes[0].ctime_ns = 0;
    check(&dataset, Some(&s.journal), Overrides::default())
        .expect("our own write-back is no change");
    assert!(check(&dataset, None, Overrides::default()).is_err());
}

#[test]
fn a_file_used_since_the_crash_is_refused() {
    let mut s = scene("changed");
    s.dataset.inodes[0].mtime_ns -= 10_000_000_000;
    let wrong = check(&s.dataset, Some(&s.journal), Overrides::default()).expect_err("refused");
    assert!(matches!(
        wrong[0],
        DiskError::Changed {
            what: "its modification time",
            ..
        }
    ));
    check(&s.dataset, Some(&s.journal), FORCE).expect("unless forced");
}

#[test]
fn another_file_of_the_same_name_is_refused() {
    let mut s = scene("ino");
    s.dataset.inodes[0].number += 1;
    let wrong = check(&s.dataset, Some(&s.journal), Overrides::default()).expect_err("refused");
    assert!(matches!(
        wrong[0],
        DiskError::Changed {
            what: "its inode number",
            ..
        }
    ));
}

#[test]
fn pages_that_the_dump_left_out_are_refused_even_by_force() {
    let mut s = scene("filtered");
    s.dataset.inodes[0].dirty[0].content = PageContent::Filtered;
    let wrong = check(&s.dataset, Some(&s.journal), FORCE).expect_err("refused");
    assert!(matches!(wrong[0], DiskError::LostPages { pages: 2, .. }));
}

#[test]
fn a_file_that_is_gone_and_one_too_large_are_refused() {
    let mut s = scene("gone");
    s.dataset.inodes[0].size = 1 << 60;
    s.dataset.inodes[0].dirty[0].count = 1 << 47;
    let wrong = check(&s.dataset, Some(&s.journal), Overrides::default()).expect_err("refused");
    assert!(matches!(wrong[0], DiskError::NoSpace { .. }));
    s.dataset.inodes[0].path.push_str(".gone");
    let wrong = check(&s.dataset, Some(&s.journal), Overrides::default()).expect_err("refused");
    assert!(matches!(wrong[0], DiskError::Missing { .. }));
}

#[test]
fn a_clean_page_that_the_journal_took_back_is_written_again() {
    let mut s = scene("uncommitted");
    let run = |start| PageRun {
        start,
        count: 1,
        content: PageContent::Frame(1),
    };
    // The disk has a page of `x` where the dead kernel had a page of zeros.
    s.dataset.inodes[0].dirty.clear();
    s.dataset.inodes[0].uncommitted = vec![run(0)];
    s.dataset.inodes[0].size = 4096;
    check(&s.dataset, Some(&s.journal), Overrides::default()).expect("fit");
    let done =
        write_back(&s.dataset, &Numbered, &s.journal, Overrides::default()).expect("writes back");
    assert_eq!(done.bytes, 4096);
    let now = fs::read(&s.dataset.inodes[0].path).expect("reads");
    assert!(now.iter().all(|b| *b == 0));
    // Now the disk has it: nothing is written.
    let again =
        write_back(&s.dataset, &Numbered, &s.journal, Overrides::default()).expect("writes back");
    assert_eq!(again, WrittenBack::default());
}

#[test]
fn unwritten_pages_of_a_block_device_wait_for_the_operator() {
    let mut s = scene("device");
    s.dataset.inodes[0].mode = 0o060_660;
    s.dataset.inodes[0].kind = InodeKind::Device;
    let wrong = check(&s.dataset, Some(&s.journal), Overrides::default()).expect_err("refused");
    assert!(matches!(wrong[0], DiskError::BlockDevice { .. }));
    check(&s.dataset, Some(&s.journal), FORCE).expect("forced");
    let done =
        write_back(&s.dataset, &Numbered, &s.journal, Overrides::default()).expect("writes back");
    assert_eq!(done.bytes, 8192);
    // One that all was written to may be another device as well.
    s.dataset.inodes[0].dirty.clear();
    let wrong = check(&s.dataset, Some(&s.journal), Overrides::default()).expect_err("refused");
    assert!(matches!(wrong[0], DiskError::BlockDevice { .. }));
}

/// The scene's file as the disk of a guest.
fn guest_scene(name: &str) -> Scene {
    let mut s = scene(name);
    s.dataset.vms = vec![Vm {
        id: ObjectId(2),
        pid: 4711,
        name: None,
        uuid: None,
        vendor: "svm".into(),
        vm_type: 0,
        memslots: vec![],
        irqchip: Irqchip::None,
        pit: None,
        routes: vec![],
        irqfds: vec![],
        ioeventfds: vec![],
        coalesced_zones: vec![],
        clock: VmClock::default(),
        default_tsc_khz: 0,
        caps: VmCaps::default(),
        tss_addr: None,
        identity_map_addr: None,
        vcpus: vec![],
    }];
    s
}

#[test]
fn a_guests_disk_that_somebody_writes_to_is_refused() {
    let s = guest_scene("written");
    check(&s.dataset, Some(&s.journal), Overrides::default()).expect("nobody has it");
    // `sleep` has it as its standard output.
    let disk = OpenOptions::new()
        .append(true)
        .open(&s.dataset.inodes[0].path)
        .expect("opens");
    let mut other = std::process::Command::new("sleep")
        .arg("60")
        .stdout(disk)
        .spawn()
        .expect("runs");
    let refused = check(&s.dataset, Some(&s.journal), Overrides::default());
    let overridden = check(&s.dataset, Some(&s.journal), FORCE);
    other.kill().expect("kills");
    other.wait().expect("ends");
    let wrong = refused.expect_err("refused");
    let DiskError::InUse { how, .. } = &wrong[0] else {
        panic!("{wrong:?}");
    };
    assert!(how.contains("sleep"), "{how}");
    // What is forced is named.
    let overridden = overridden.expect("forced");
    assert!(matches!(overridden[0], DiskError::InUse { .. }));
    check(&s.dataset, Some(&s.journal), Overrides::default()).expect("nobody has it any more");
}

#[test]
fn a_locked_disk_of_a_guest_is_refused() {
    let s = guest_scene("locked");
    let disk = File::open(&s.dataset.inodes[0].path).expect("opens");
    disk.lock().expect("locks");
    let wrong = check(&s.dataset, Some(&s.journal), Overrides::default()).expect_err("refused");
    assert!(matches!(wrong[0], DiskError::InUse { .. }), "{wrong:?}");
    drop(disk);
    check(&s.dataset, Some(&s.journal), Overrides::default()).expect("free again");
}

#[test]
fn a_reader_of_a_guests_disk_is_no_reason_to_refuse() {
    let s = guest_scene("read");
    let _reader = File::open(&s.dataset.inodes[0].path).expect("opens");
    check(&s.dataset, Some(&s.journal), Overrides::default()).expect("readers do no harm");
}

#[test]
fn another_host_sees_that_the_guest_was_restored() {
    let mut s = guest_scene("marked");
    // As new as the crash left it: every change from here on shows.
    s.dataset.inodes[0].ctime_ns -= 5_000_000_000;
    let markers = Markers::set(&s.dataset, &s.journal).expect("marks");
    // Its journal is another, and empty.
    let elsewhere = Journal::open(&s.dir.join("elsewhere"), "c").expect("opens");
    let wrong = check(&s.dataset, Some(&elsewhere), Overrides::default()).expect_err("refused");
    assert!(
        matches!(&wrong[0], DiskError::Marked { crash, .. } if crash == "c"),
        "{wrong:?}"
    );
    // The mark of a crash that came before this one is history.
    let mut later = s.dataset.clone();
    later.crash_id = "d".into();
    later.host.realtime_ns = i64::MAX;
    later.inodes[0].ctime_ns = i64::MAX;
    check(&later, None, Overrides::default()).expect("another crash, later");
    later.host.realtime_ns = 0;
    assert!(
        check(&later, None, Overrides::default()).is_err(),
        "a crash of before it"
    );
    // The guest did not run after all.
    markers.remove(&s.journal);
    check(&s.dataset, Some(&s.journal), Overrides::default()).expect("nothing has happened");
    let files = fs::read_dir(&s.dir).expect("reads").count();
    assert_eq!(files, 3, "the disk and the journals");
}

#[test]
fn a_forced_attempt_that_fails_leaves_the_earlier_mark() {
    let s = guest_scene("forced");
    let other = Journal::open(&s.dir.join("other"), "c").expect("opens");
    let (old, new) = (4711, std::process::id().cast_signed());
    // Restored on another host, then by force here, where it fails.
    Markers::set(&s.dataset, &other).expect("marks");
    let mark = || {
        let file = File::open(&s.dataset.inodes[0].path).expect("opens");
        let mark = crate::sys::file_facts::attribute(&file, c"user.vmrestore").expect("reads");
        mark.or_else(|| fs::read(s.dir.join("disk.img.vmrestore-marker")).ok())
    };
    let before = mark();
    assert!(before.is_some());
    Markers::set(&s.dataset, &s.journal)
        .expect("marks")
        .remove(&s.journal);
    assert_eq!(mark(), before);
    // But what an attempt from here has left that was cut off goes.
    s.journal.record_resuming(old, new).expect("records");
    Markers::set(&s.dataset, &s.journal)
        .expect("marks")
        .remove(&s.journal);
    assert_eq!(mark(), None);
}

#[test]
fn a_file_system_of_another_uuid_is_refused() {
    let mut s = scene("uuid");
    let file = File::open(&s.dataset.inodes[0].path).expect("opens");
    let known = crate::sys::file_facts::file_system(&file).is_some();
    s.dataset.inodes[0].fs_uuid = Some("00010203-0405-0607-0809-0a0b0c0d0e0f".into());
    match check(&s.dataset, Some(&s.journal), Overrides::default()) {
        Err(wrong) => {
            assert!(known, "{wrong:?}");
            assert!(
                matches!(
                    wrong[0],
                    DiskError::Changed {
                        what: "the UUID of its file system",
                        ..
                    }
                ),
                "{wrong:?}"
            );
        }
        Ok(_) => assert!(!known, "this file system says what its UUID is"),
    }
}

#[test]
fn an_inode_number_that_was_dealt_out_again_is_refused() {
    let mut s = scene("generation");
    let file = File::open(&s.dataset.inodes[0].path).expect("opens");
    let Some(now) = crate::sys::file_facts::generation(&file) else {
        // The file system has none (tmpfs): then only ext4, xfs and btrfs count.
        s.dataset.inodes[0].generation = Some(1);
        check(&s.dataset, Some(&s.journal), Overrides::default()).expect("nothing to compare with");
        return;
    };
    s.dataset.inodes[0].generation = Some(now);
    check(&s.dataset, Some(&s.journal), Overrides::default()).expect("the same");
    s.dataset.inodes[0].generation = Some(now.wrapping_add(1));
    let wrong = check(&s.dataset, Some(&s.journal), Overrides::default()).expect_err("refused");
    assert!(matches!(wrong[0], DiskError::Changed { .. }), "{wrong:?}");
}

/// A file that the disk has not got, with two and a half pages in the dump.
fn newborn_scene(name: &str) -> Scene {
    let mut s = scene(name);
    let inode = &mut s.dataset.inodes[0];
    fs::remove_file(&inode.path).expect("removes");
    inode.newborn = true;
    inode.number += 100_000;
    inode.mode = 0o100_640;
    inode.uncommitted = vec![PageRun {
        start: 0,
        count: 1,
        content: PageContent::Frame(70),
    }];
    s
}

fn make_again(s: &Scene) {
    let guard = Guard::install();
    let mut made = crate::restore::volatile_files::Made::default();
    make_newborn(&s.dataset, &Numbered, &guard, true, &mut made).expect("makes");
    assert_eq!(made.paths.len(), 1);
    assert_eq!(made.notes.len(), 1);
}

#[test]
fn a_file_that_the_disk_never_knew_is_made_again_whole() {
    let s = newborn_scene("newborn");
    let path = &s.dataset.inodes[0].path;
    check(&s.dataset, Some(&s.journal), Overrides::default()).expect("can be made");
    assert!(!Path::new(path).exists(), "a check changes nothing");
    make_again(&s);
    let now = fs::read(path).expect("reads");
    assert_eq!(now.len(), 10_000);
    assert!(
        now.iter()
            .enumerate()
            .all(|(at, b)| *b == (at / 4096) as u8)
    );
    let meta = fs::metadata(path).expect("stats");
    assert_eq!(meta.mode(), 0o100_640);
    assert_eq!(mtime(&meta), s.dataset.inodes[0].mtime_ns);

    // Killed here: the next attempt knows its own work.
    check(&s.dataset, Some(&s.journal), Overrides::default()).expect("ours");
    let done =
        write_back(&s.dataset, &Numbered, &s.journal, Overrides::default()).expect("writes back");
    assert_eq!(done.bytes, 0, "it is whole already");
    check(&s.dataset, Some(&s.journal), Overrides::default()).expect("ours, by the journal");
    assert!(check(&s.dataset, None, Overrides::default()).is_err());

    // The restore failed after that, and took the file away with it.
    fs::remove_file(path).expect("removes");
    let again = || newborn::check(&s.dataset.inodes[0], &[4711], Some(&s.journal));
    s.journal.record_resuming(4711, 1).expect("records");
    again().expect("can be made again");
    // Taken away by somebody when all was done: not our business any more.
    s.journal.record_resumed(4711, 1).expect("records");
    let wrong = again().expect_err("refused");
    assert!(matches!(wrong, DiskError::Missing { .. }), "{wrong:?}");
}

#[test]
fn a_newborn_file_is_not_made_where_a_link_leads() {
    let mut s = newborn_scene("newborn-link");
    let (real, link) = (s.dir.join("real"), s.dir.join("link"));
    fs::create_dir(&real).expect("makes");
    std::os::unix::fs::symlink(&real, &link).expect("links");
    s.dataset.inodes[0].path = link.join("file").display().to_string();
    let wrong = check(&s.dataset, Some(&s.journal), Overrides::default()).expect_err("refused");
    assert!(matches!(wrong[0], DiskError::Missing { .. }), "{wrong:?}");
    assert!(fs::read_dir(&real).expect("reads").next().is_none());
}

#[test]
fn a_newborn_file_that_another_has_replaced_is_refused() {
    let s = newborn_scene("newborn-replaced");
    fs::write(&s.dataset.inodes[0].path, b"other").expect("writes");
    let wrong = check(&s.dataset, Some(&s.journal), Overrides::default()).expect_err("refused");
    assert!(matches!(wrong[0], DiskError::Changed { .. }), "{wrong:?}");
}

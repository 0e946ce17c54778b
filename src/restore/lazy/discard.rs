//! Shared memory that is given back while it still arrives: whose content, and since when, is zeros.
//!
//! Private memory is simple: the kernel tells of each range, and holds whoever gave it back until that
//! was heard. Of shared memory it tells the same of two calls that mean different things. MADV_REMOVE
//! makes zeros of the pages for everybody, MADV_DONTNEED takes them out of one mapping and changes
//! nothing. Which it was, `advice` tells. And of fallocate(PUNCH_HOLE), by which VMMs give guest memory
//! back of which they have a descriptor, the kernel tells nothing: the file's time of change alone shows
//! it, and which pages it was only the MADV_DONTNEED of the same range that VMMs let follow. Until that
//! comes nothing is put into place; if it does not come, the guest is ended.

use super::advice::{Call, REMOVE};
use nix::fcntl::{FallocateFlags, fallocate};
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

/// How long a change of the file may be without a word of where it was; and a call, once it was let go
/// on, without a change.
const PATIENCE: Duration = Duration::from_secs(2);

/// When a file was changed by a call: seconds and nanoseconds.
type Stamp = (i64, i64);

/// The file behind a shared memory.
#[derive(Debug)]
pub struct Backing {
    file: File,
    /// Up to here it is known what was changed.
    known: Stamp,
    /// Somebody punches holes into it: a MADV_DONTNEED belongs to that.
    punches: bool,
    /// Until then changes are those of an MADV_REMOVE that was heard of.
    expected: Option<Instant>,
    /// A change has not been explained since.
    since: Option<Instant>,
}

/// Whether pages may be put into place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quiet {
    Yes,
    NotYet,
    Never,
}

/// What a range that was given back is from now on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Zeros.
    Zeros,
    /// What it was.
    Same,
}

impl Backing {
    /// A memory in which nobody gives anything back yet.
    pub fn new(file: File) -> Self {
        let mut backing = Self {
            file,
            known: (0, 0),
            punches: false,
            expected: None,
            since: None,
        };
        backing.known = backing.stamp();
        backing
    }

    fn stamp(&self) -> Stamp {
        self.file
            .metadata()
            .map_or((0, 0), |m| (m.mtime(), m.mtime_nsec()))
    }

    /// A process has it mapped in a range of its addresses.
    pub fn is_mapped(&self, pid: i32, (start, end): (u64, u64)) -> bool {
        let Ok(own) = self.file.metadata() else {
            return false;
        };
        let (major, minor) = (libc::major(own.dev()), libc::minor(own.dev()));
        let own = (format!("{major:02x}:{minor:02x}"), own.ino().to_string());
        let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
        maps.lines().any(|line| {
            let mut words = line.split_ascii_whitespace();
            let range = words.next().and_then(|range| range.split_once('-'));
            let number = |text| u64::from_str_radix(text, 16).ok();
            let is_there = range.is_some_and(|(first, last)| {
                number(first).is_some_and(|first| first < end)
                    && number(last).is_some_and(|last| start < last)
            });
            is_there && words.nth(2) == Some(&own.0) && words.next() == Some(&own.1)
        })
    }

    fn explained(&mut self) {
        self.known = self.stamp();
        self.since = None;
    }

    /// The file was changed, and nobody said how.
    fn is_unexplained(&mut self) -> bool {
        if self.stamp() == self.known {
            return false;
        }
        let expected = self.expected.is_some_and(|until| Instant::now() < until);
        if expected {
            self.explained();
        }
        !expected
    }

    /// Nobody has changed the file in a way that is not known.
    pub fn quiet(&mut self) -> Quiet {
        if !self.is_unexplained() {
            self.since = None;
            return Quiet::Yes;
        }
        match self.since.get_or_insert_with(Instant::now).elapsed() {
            early if early < PATIENCE => Quiet::NotYet,
            _ => Quiet::Never,
        }
    }

    /// Before the word of it is read, and so while the thread waits that gives these bytes back: what
    /// has arrived since it punched them must go.
    pub fn before(&mut self, call: &Call, offset: u64, len: u64) {
        if call.advice != REMOVE && (self.punches || self.is_unexplained()) {
            self.punches = true;
            self.punch(offset, len);
        }
    }

    /// A range was given back by this call.
    pub fn verdict(&mut self, call: &Call) -> Verdict {
        if call.advice == REMOVE {
            self.expected = Some(Instant::now() + PATIENCE);
            return Verdict::Zeros;
        }
        match self.punches || self.is_unexplained() {
            true => {
                self.punches = true;
                self.explained();
                Verdict::Zeros
            }
            false => Verdict::Same,
        }
    }

    fn punch(&self, offset: u64, len: u64) {
        let (Ok(offset), Ok(len)) = (i64::try_from(offset), i64::try_from(len)) else {
            return;
        };
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        // What cannot be punched by its owner neither was.
        let _ = fallocate(&self.file, flags, offset, len);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory() -> (File, Backing) {
        let fd = nix::sys::memfd::memfd_create("backing", nix::sys::memfd::MFdFlags::empty());
        let file = File::from(fd.expect("a memfd"));
        file.set_len(1 << 20).expect("its size");
        let backing = Backing::new(file.try_clone().expect("another descriptor"));
        std::thread::sleep(Duration::from_millis(20));
        (file, backing)
    }

    const DONTNEED: u64 = 4;

    /// A page taken out of one mapping is what it was; one that was punched before is zeros, and nothing
    /// is put into place between.
    #[test]
    fn a_hole_shows_by_the_time_of_change() {
        let (file, mut backing) = memory();
        assert_eq!(backing.quiet(), Quiet::Yes);
        let dropped = Call::heard(0, 0x2000, DONTNEED);
        backing.before(&dropped, 0, 0x2000);
        assert_eq!(backing.verdict(&dropped), Verdict::Same);
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        fallocate(&file, flags, 0, 0x2000).expect("a hole");
        assert_eq!(backing.quiet(), Quiet::NotYet);
        // One that came too late for it.
        std::os::unix::fs::FileExt::write_at(&file, &[7; 4096], 0).expect("a page");
        backing.before(&dropped, 0, 0x2000);
        assert_eq!(backing.verdict(&dropped), Verdict::Zeros);
        assert_eq!(backing.quiet(), Quiet::Yes);
        assert_eq!(file.metadata().expect("metadata").blocks(), 0);
    }

    #[test]
    fn what_is_removed_is_expected_to_change() {
        let (file, mut backing) = memory();
        let removed = Call::heard(0, 0x2000, REMOVE);
        backing.before(&removed, 0, 0x2000);
        assert_eq!(backing.verdict(&removed), Verdict::Zeros);
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        fallocate(&file, flags, 0, 0x2000).expect("a hole");
        assert_eq!(backing.quiet(), Quiet::Yes);
        assert!(!backing.punches);
    }

    #[test]
    fn who_has_it_mapped_is_known() {
        let (file, backing) = memory();
        let own = std::process::id().cast_signed();
        assert!(!backing.is_mapped(own, (0, u64::MAX)));
        let map = crate::sys::window::open(&file, 0, 1 << 20).expect("maps it");
        let at = map.as_ptr().addr() as u64;
        assert!(backing.is_mapped(own, (at + 0x5000, at + 0x6000)));
        assert!(!backing.is_mapped(own, (at + (1 << 20), at + (2 << 20))));
        assert!(!backing.is_mapped(1, (0, u64::MAX)));
        let (_another, backing) = memory();
        assert!(!backing.is_mapped(own, (at, at + 0x1000)));
    }

    /// A change of which nobody says where it was ends in a refusal, never in a guess.
    #[test]
    fn what_is_not_explained_is_not_guessed() {
        let (file, mut backing) = memory();
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        fallocate(&file, flags, 0, 0x2000).expect("a hole");
        assert_eq!(backing.quiet(), Quiet::NotYet);
        std::thread::sleep(PATIENCE);
        assert_eq!(backing.quiet(), Quiet::Never);
    }
}

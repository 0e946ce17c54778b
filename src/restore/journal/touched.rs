//! What we have done to files and devices of this crash.
//!
//! A write-back or a mark changes a file's times, and the next attempt must know
//! that this was us. So the intention is durable before the first change, and
//! the state that we left it in is durable after the last. Between the two lies
//! a kill, or a power failure: then the file's change time must lie between the
//! intention and the last sign of life, which is a file of the journal whose own
//! times say when we last went on. What changed later was somebody else.
//!
//! Layout: `touching-KEY.json` (intention), `alive-KEY` (sign of life),
//! `written-KEY.json` (done).

use super::{Journal, JournalError, boot_id, io};
use serde::{Deserialize, Serialize};
use std::fs::{self, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;

/// Longest step between two signs of life: one write of at most 1 MiB, a change
/// of size, a mark. Nanoseconds.
const STEP: i64 = 5_000_000_000;
/// After a power failure the last signs may not have reached the disk: the time
/// in which the kernel writes back what nobody has asked it to. Nanoseconds.
const UNSYNCED: i64 = 45_000_000_000;
/// Times of files are those of the last tick of the kernel's clock.
const TICK: i64 = 20_000_000;

/// State of a file or device, as far as we can tell a change by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Touched {
    /// The inode's change time, nanoseconds since 1970; of a device the number
    /// of sectors that were written to it since it appeared.
    pub stamp: i64,
}

/// We are about to change it.
#[derive(Debug, Serialize, Deserialize)]
struct Touching {
    path: String,
    /// What it was when it was found fit.
    before: Touched,
    boot_id: String,
}

/// We changed it.
#[derive(Debug, Serialize, Deserialize)]
struct Written {
    path: String,
    after: Touched,
    /// Counters of a device begin anew with each boot.
    #[serde(default)]
    boot_id: String,
}

impl Journal {
    /// Makes it durable that the file or device `key` is about to be changed by
    /// us. `before` is its state, which was found fit.
    ///
    /// # Errors
    /// `Io`: then it must not be changed.
    pub fn touching(&self, key: &str, path: &str, before: Touched) -> Result<(), JournalError> {
        self.alive(key)?;
        // An intention that was cut off covers this one: what it began with
        // was fit too.
        if self.read::<Touching>(&touching(key))?.is_none() {
            let record = Touching {
                path: path.to_owned(),
                before,
                boot_id: boot_id(),
            };
            self.write(&touching(key), &record)?;
        }
        self.alive(key)
    }

    /// A sign of life, before each step.
    ///
    /// # Errors
    /// `Io`: then it must not be changed.
    pub fn alive(&self, key: &str) -> Result<(), JournalError> {
        let path = self.sign(key);
        OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .and_then(|file| file.write_all_at(b"1", 0))
            .map_err(|e| io("write", &path, e))
    }

    /// Makes durable what state we left it in.
    ///
    /// # Errors
    /// `Io`.
    pub fn touched(&self, key: &str, path: &str, after: Touched) -> Result<(), JournalError> {
        let record = Written {
            path: path.to_owned(),
            after,
            boot_id: boot_id(),
        };
        self.write(&written(key), &record)?;
        self.forget_rescued(key)?;
        for done in [self.dir.join(touching(key)), self.sign(key)] {
            match fs::remove_file(&done) {
                Err(e) if e.kind() != ErrorKind::NotFound => return Err(io("remove", &done, e)),
                _ => {}
            }
        }
        Ok(())
    }

    /// Whether a file is as we left it when all was done.
    ///
    /// # Errors
    /// `Io` when a record is there and cannot be read.
    pub fn is_as_left(&self, key: &str, now: Touched) -> Result<bool, JournalError> {
        let done = self.read::<Written>(&written(key))?;
        Ok(done.is_some_and(|done| done.after == now))
    }

    /// Whether we have written to it, to the end.
    ///
    /// # Errors
    /// `Io` when a record is there and cannot be read.
    pub fn has_written(&self, key: &str) -> Result<bool, JournalError> {
        Ok(self.read::<Written>(&written(key))?.is_some())
    }

    /// Whether a file is as we left it, or as we may have left it when we were
    /// cut off. `now` is its change time.
    ///
    /// # Errors
    /// `Io` when a record is there and cannot be read.
    pub fn explains_file(&self, key: &str, now: Touched) -> Result<bool, JournalError> {
        if let Some(done) = self.read::<Written>(&written(key))?
            && done.after == now
        {
            return Ok(true);
        }
        let Some(begun) = self.read::<Touching>(&touching(key))? else {
            return Ok(false);
        };
        if begun.before == now {
            return Ok(true);
        }
        let record = self.dir.join(touching(key));
        let times = |path: &PathBuf| {
            let meta = fs::metadata(path).map_err(|e| io("stat", path, e))?;
            Ok::<i64, JournalError>(
                meta.mtime()
                    .saturating_mul(1_000_000_000)
                    .saturating_add(meta.mtime_nsec()),
            )
        };
        let from = times(&record)?.saturating_sub(TICK);
        // It is made before the intention is.
        let last = times(&self.sign(key)).unwrap_or(from).max(from);
        let unsynced = if begun.boot_id == boot_id() {
            0
        } else {
            UNSYNCED
        };
        let until = last.saturating_add(STEP).saturating_add(unsynced);
        Ok((from..=until).contains(&now.stamp))
    }

    /// Sectors that we may have written to a device since this host booted:
    /// what its counter may say at the most. 0 where we never wrote to it.
    /// `planned` is what a write-back that was cut off would have written.
    ///
    /// # Errors
    /// `Io` when a record is there and cannot be read.
    pub fn written_sectors(&self, key: &str, planned: i64) -> Result<i64, JournalError> {
        let done = self.read::<Written>(&written(key))?;
        let done = done.filter(|d| d.boot_id == boot_id());
        let begun = self.read::<Touching>(&touching(key))?;
        let begun = begun.filter(|b| b.boot_id == boot_id());
        Ok(match (done, begun) {
            (_, Some(begun)) => begun.before.stamp.saturating_add(planned),
            (Some(done), None) => done.after.stamp,
            (None, None) => 0,
        })
    }

    fn sign(&self, key: &str) -> PathBuf {
        self.dir.join(format!("alive-{key}"))
    }
}

fn touching(key: &str) -> String {
    format!("touching-{key}.json")
}

fn written(key: &str) -> String {
    format!("written-{key}.json")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::Write;

    fn journal(name: &str) -> (PathBuf, Journal) {
        let dir = std::env::temp_dir().join(format!("vmrestore-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        let journal = Journal::open(&dir, "abc").expect("opens");
        (dir, journal)
    }

    fn at(stamp: i64) -> Touched {
        Touched { stamp }
    }

    fn now() -> i64 {
        let path = std::env::temp_dir().join(format!("vmrestore-now-{}", std::process::id()));
        let mut file = File::create(&path).expect("creates");
        file.write_all(b"1").expect("writes");
        let meta = fs::metadata(&path).expect("stats");
        fs::remove_file(&path).expect("removes");
        meta.mtime() * 1_000_000_000 + meta.mtime_nsec()
    }

    #[test]
    fn only_what_was_changed_between_intention_and_last_sign_is_ours() {
        let (dir, journal) = journal("touched");
        assert!(!journal.explains_file("k", at(5)).expect("reads"));
        let before = now();
        journal.touching("k", "/d", at(5)).expect("intends");
        let during = now();
        journal.alive("k").expect("lives");
        let yes = |stamp| journal.explains_file("k", at(stamp)).expect("reads");
        assert!(yes(5), "nothing had happened yet");
        assert!(yes(during));
        assert!(!yes(6), "another state from before");
        assert!(!yes(before - 1_000_000_000));
        assert!(!yes(during + 2 * STEP), "somebody came later");
        assert!(!journal.explains_file("other", at(5)).expect("reads"));
        // A second attempt, cut off as well, covers the first one.
        journal.touching("k", "/d", at(during)).expect("intends");
        assert!(yes(5) && yes(during));
        journal.touched("k", "/d", at(77)).expect("done");
        assert!(yes(77));
        assert!(!yes(5) && !yes(during), "it is over");
        fs::remove_dir_all(dir).expect("cleans up");
    }

    #[test]
    fn a_devices_counter_is_ours_up_to_what_we_meant_to_write() {
        let (dir, journal) = journal("sectors");
        let most = || journal.written_sectors("k", 100).expect("reads");
        assert_eq!(most(), 0);
        journal.touching("k", "/d", at(0)).expect("intends");
        assert_eq!(most(), 100);
        journal.touched("k", "/d", at(64)).expect("done");
        assert_eq!(most(), 64);
        journal.touching("k", "/d", at(64)).expect("again");
        assert_eq!(most(), 164);
        fs::remove_dir_all(dir).expect("cleans up");
    }
}

//! The journal that refuses a second restore.
//!
//! A guest that has been resumed once owns its disks; the dump shows it as it
//! was before that. Bringing it back again would let two copies write to one
//! disk. So before a process runs, a record keyed by the crash and the process
//! is made durable, and whoever finds such a record refuses.
//!
//! Layout: `STATE_DIR/CRASH_ID/resumed-PID.json`, what `touched` and `rescued` keep
//! of each file, and a `lock` that one restore at a time holds.

mod in_place;
mod rescued;
mod touched;

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

pub use in_place::frames_in_use;
pub use rescued::Rescued;
pub use touched::Touched;

/// Where the journal is kept unless the user says otherwise.
pub const DEFAULT_STATE_DIR: &str = "/var/lib/vmrestore";

/// Why the journal refuses, or cannot be kept.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The process has been brought back from this crash before.
    #[error(
        "pid {pid} of crash {crash} was restored already, at {when} (Unix time), as pid {as_pid}"
    )]
    AlreadyRestored {
        /// PID in the dead host.
        pid: i32,
        /// Identity of the crash.
        crash: String,
        /// Seconds since 1970.
        when: u64,
        /// PID that it was given.
        as_pid: i32,
    },
    /// Another vmrestore works on the same crash.
    #[error("another vmrestore is restoring from this crash now ({lock} is locked)")]
    Busy {
        /// The lock file.
        lock: String,
    },
    /// The process was resumed in place: what it had in the dead host's memory is its own, and goes on.
    #[error(
        "pid {pid} of crash {crash} was resumed in place: its memory is no longer as the crash left it"
    )]
    InPlace {
        /// PID in the dead host.
        pid: i32,
        /// Identity of the crash.
        crash: String,
    },
    /// A page frame of the dead host that is to be used in place is another guest's already.
    #[error("pid {pid}: page frame {pfn:#x} is in use by pid {other}, which was resumed in place")]
    FrameTaken {
        /// PID in the dead host.
        pid: i32,
        /// The frame.
        pfn: u64,
        /// Whose it is: PID in the dead host.
        other: i32,
    },
    /// The crash has no usable identity.
    #[error("the crash's identity {id:?} cannot name a directory")]
    BadIdentity {
        /// What the dump said.
        id: String,
    },
    /// The state directory cannot be used.
    #[error("journal: cannot {what} {path}")]
    Io {
        /// The operation.
        what: &'static str,
        /// On which path.
        path: String,
        /// Its error.
        source: std::io::Error,
    },
}

/// The open journal of one crash; other restores are locked out while it lives.
#[derive(Debug)]
pub struct Journal {
    dir: PathBuf,
    crash: String,
    lock: File,
}

/// A process was resumed, or is about to be.
#[derive(Debug, Serialize, Deserialize)]
struct Resumed {
    pid: i32,
    as_pid: i32,
    /// Seconds since 1970.
    when: u64,
    /// The boot of this host in which `as_pid` lives.
    #[serde(default)]
    boot_id: String,
    /// Its start time, in clock ticks since that boot: PIDs are used again.
    #[serde(default)]
    started: u64,
    /// It runs. Written before that with `false`: whoever finds that, and the
    /// process gone, knows that vmrestore was killed before it could run (until
    /// it runs it dies with vmrestore), or that it ran for a moment, in which
    /// case its files tell.
    #[serde(default = "yes")]
    running: bool,
}

const fn yes() -> bool {
    true
}

impl Resumed {
    /// The restored process lives on this host.
    fn is_alive(&self) -> bool {
        self.boot_id == boot_id() && start_time(self.as_pid) == Some(self.started)
    }

    /// vmrestore was killed before the process could run.
    fn is_unfinished(&self) -> bool {
        !self.running && !self.is_alive()
    }
}

fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map_or_else(|_| String::new(), |id| id.trim().to_owned())
}

/// When a process was started, in clock ticks since boot; `None` when there is
/// none, or only what is left of one. /proc/PID/stat, fields 3 and 22.
fn start_time(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything.
    let (_, rest) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    // Of one whose first thread has ended before the others, only that is a remnant.
    let ended = matches!(*fields.first()?, "Z" | "X");
    if ended && fs::read_dir(format!("/proc/{pid}/task")).ok()?.count() < 2 {
        return None;
    }
    fields.get(19)?.parse().ok()
}

impl Journal {
    /// Opens (and locks) the journal of the crash `crash` below `state_dir`.
    ///
    /// # Errors
    /// [`JournalError::Busy`] when another restore holds it; `Io` when the
    /// directory cannot be made or locked.
    pub fn open(state_dir: &Path, crash: &str) -> Result<Self, JournalError> {
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-';
        if crash.is_empty() || crash.len() > 128 || !crash.chars().all(plain) {
            return Err(JournalError::BadIdentity {
                id: crash.to_owned(),
            });
        }
        let dir = state_dir.join(crash);
        fs::create_dir_all(&dir).map_err(|e| io("create", &dir, e))?;
        let path = dir.join("lock");
        let lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(|e| io("open", &path, e))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(JournalError::Busy {
                    lock: path.display().to_string(),
                });
            }
            Err(TryLockError::Error(e)) => return Err(io("lock", &path, e)),
        }
        Ok(Self {
            dir,
            crash: crash.to_owned(),
            lock,
        })
    }

    /// Refuses when the process was resumed before.
    ///
    /// # Errors
    /// [`JournalError::AlreadyRestored`].
    pub fn check(&self, pid: i32) -> Result<(), JournalError> {
        match self.read::<Resumed>(&format!("resumed-{pid}.json"))? {
            None => Ok(()),
            Some(r) if r.is_unfinished() => Ok(()),
            Some(r) => Err(JournalError::AlreadyRestored {
                pid,
                crash: self.crash.clone(),
                when: r.when,
                as_pid: r.as_pid,
            }),
        }
    }

    /// An attempt to restore the process was cut off before it could run.
    #[must_use]
    pub fn is_unfinished(&self, pid: i32) -> bool {
        self.read::<Resumed>(&format!("resumed-{pid}.json"))
            .is_ok_and(|r| r.is_some_and(|r| r.is_unfinished()))
    }

    /// A restore of the process came to its end.
    ///
    /// # Errors
    /// `Io` when a record is there and cannot be read.
    pub fn has_resumed(&self, pid: i32) -> Result<bool, JournalError> {
        let record = self.read::<Resumed>(&format!("resumed-{pid}.json"))?;
        Ok(record.is_some_and(|record| record.running))
    }

    /// PIDs, on this host, of what was restored from this crash and lives.
    #[must_use]
    pub fn running(&self) -> Vec<i32> {
        let entries = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        entries
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|name| name.starts_with("resumed-") && name.ends_with(".json"))
            .filter_map(|name| self.read::<Resumed>(&name).ok().flatten())
            .filter(Resumed::is_alive)
            .map(|r| r.as_pid)
            .collect()
    }

    /// A restore of the process is on its way, or was cut off, and none before
    /// it came to an end.
    #[must_use]
    pub fn is_resuming(&self, pid: i32) -> bool {
        self.read::<Resumed>(&format!("resumed-{pid}.json"))
            .is_ok_and(|r| r.is_some_and(|r| !r.running))
    }

    /// Makes it durable that the process is about to run. Where it was restored
    /// before (`--force`), that stays true whatever becomes of this attempt.
    ///
    /// # Errors
    /// `Io`: then it must not run.
    pub fn record_resuming(&self, pid: i32, as_pid: i32) -> Result<(), JournalError> {
        let before = self.check(pid).is_err();
        self.record(pid, as_pid, before)
    }

    /// Makes it durable that the process runs.
    ///
    /// # Errors
    /// `Io`.
    pub fn record_resumed(&self, pid: i32, as_pid: i32) -> Result<(), JournalError> {
        self.record(pid, as_pid, true)
    }

    fn record(&self, pid: i32, as_pid: i32, running: bool) -> Result<(), JournalError> {
        let when = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |d| d.as_secs());
        let record = Resumed {
            pid,
            as_pid,
            when,
            boot_id: boot_id(),
            started: start_time(as_pid).unwrap_or(0),
            running,
        };
        self.write(&format!("resumed-{pid}.json"), &record)
    }

    /// Takes back [`Journal::record_resuming`] for a process that did not run after all.
    ///
    /// # Errors
    /// `Io`.
    pub fn forget_resumed(&self, pid: i32) -> Result<(), JournalError> {
        let path = self.dir.join(format!("resumed-{pid}.json"));
        fs::remove_file(&path).map_err(|e| io("remove", &path, e))
    }

    fn read<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, JournalError> {
        let path = self.dir.join(name);
        match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map(Some)
                .map_err(|e| io("understand", &path, e.into())),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
            Err(e) => Err(io("read", &path, e)),
        }
    }

    /// Replaces a record in one step: whoever reads it sees the old or the new
    /// one, also after a power failure.
    fn write<T: Serialize>(&self, name: &str, record: &T) -> Result<(), JournalError> {
        let path = self.dir.join(name);
        let temporary = self.dir.join(format!("{name}.new"));
        let bytes = serde_json::to_vec(record).map_err(|e| io("encode", &path, e.into()))?;
        let mut file = File::create(&temporary).map_err(|e| io("create", &temporary, e))?;
        file.write_all(&bytes)
            .and_then(|()| file.sync_all())
            .map_err(|e| io("write", &temporary, e))?;
        fs::rename(&temporary, &path).map_err(|e| io("rename", &path, e))?;
        File::open(&self.dir)
            .and_then(|d| d.sync_all())
            .map_err(|e| io("sync", &self.dir, e))
    }
}

impl Drop for Journal {
    /// A pager may have a copy of the descriptor for as long as it lives.
    fn drop(&mut self) {
        let _ = self.lock.unlock();
    }
}

fn io(what: &'static str, path: &Path, source: std::io::Error) -> JournalError {
    JournalError::Io {
        what,
        path: path.display().to_string(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A child of another test, between its fork and its exec, holds a copy of
    /// every descriptor, and so the lock.
    fn open_when_free(dir: &Path) -> Journal {
        loop {
            match Journal::open(dir, "abc") {
                Err(JournalError::Busy { .. }) => std::thread::yield_now(),
                other => return other.expect("the lock is gone"),
            }
        }
    }

    #[test]
    fn a_second_restore_is_refused_until_forgotten() {
        let dir = std::env::temp_dir().join(format!("vmrestore-journal-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        let journal = Journal::open(&dir, "abc").expect("opens");
        journal.check(7).expect("nothing restored yet");
        journal.record_resumed(7, 1).expect("records");
        assert!(matches!(
            Journal::open(&dir, "abc").expect_err("locked"),
            JournalError::Busy { .. }
        ));
        drop(journal);
        let again = open_when_free(&dir);
        assert!(matches!(
            again.check(7),
            Err(JournalError::AlreadyRestored { pid: 7, .. })
        ));
        again.check(8).expect("another process is free");
        let other = Journal::open(&dir, "def").expect("another crash");
        other.check(7).expect("is another matter");
        again.forget_resumed(7).expect("forgets");
        again.check(7).expect("free again");
        fs::remove_dir_all(&dir).expect("cleans up");
    }

    #[test]
    fn an_attempt_that_was_cut_off_may_be_made_again() {
        let dir = std::env::temp_dir().join(format!("vmrestore-cut-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        let journal = Journal::open(&dir, "abc").expect("opens");
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .expect("runs");
        let as_pid = child.id().cast_signed();
        journal.record_resuming(7, as_pid).expect("records");
        assert!(journal.check(7).is_err(), "it lives");
        assert_eq!(journal.running(), [as_pid]);
        child.kill().expect("kills");
        // A zombie runs no more.
        while start_time(as_pid).is_some() {
            std::thread::yield_now();
        }
        assert!(journal.is_unfinished(7));
        journal.check(7).expect("it never ran");
        child.wait().expect("ends");
        // Had it run, its end would not make it free.
        journal.record_resumed(7, as_pid).expect("records");
        assert!(!journal.is_unfinished(7));
        assert!(journal.check(7).is_err());
        // Nor would a forced attempt that was cut off in its turn.
        journal.record_resuming(7, as_pid).expect("records");
        assert!(!journal.is_unfinished(7));
        assert!(journal.check(7).is_err());
        assert!(journal.running().is_empty());
        fs::remove_dir_all(&dir).expect("cleans up");
    }

    #[test]
    fn an_identity_cannot_leave_the_directory() {
        for id in ["", "..", "a/b", "a\0"] {
            let refused = Journal::open(Path::new("/nonexistent"), id);
            assert!(
                matches!(refused, Err(JournalError::BadIdentity { .. })),
                "{id:?}"
            );
        }
    }
}

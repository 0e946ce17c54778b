//! Page frames of the dead host in which guests run that were resumed in place. They belong to these
//! guests until the machine is reset: nobody else may use them, and nobody may take what is in them
//! for what the crash left.
//!
//! `in-place-PID.json` stands before anything is written to the frames. It counts for as long as
//! `resumed-PID.json` says that the process ran, or may have run.

use super::{Journal, JournalError, io};
use serde::{Deserialize, Serialize};
use std::fs;
use std::io::ErrorKind;
use std::ops::Range;
use std::path::Path;

/// Page frames of one process.
#[derive(Debug, Serialize, Deserialize)]
struct InPlace {
    /// First frame, number of frames; in order.
    frames: Vec<(u64, u64)>,
}

/// Whose (PID in the dead host), and which.
type Claim = (i32, Vec<Range<u64>>);

impl Journal {
    /// Makes it durable that these page frames (in order) are about to be the process's.
    ///
    /// # Errors
    /// [`JournalError::FrameTaken`]: one of them is another's already. [`JournalError::InPlace`]: the
    /// process has had its frames. `Io`.
    pub fn claim(&self, pid: i32, frames: &[Range<u64>]) -> Result<(), JournalError> {
        self.refuse_in_place(pid)?;
        for (other, taken) in self.claims()? {
            if let Some(pfn) = taken.iter().find_map(|range| overlap(frames, range)) {
                return Err(JournalError::FrameTaken { pid, pfn, other });
            }
        }
        let frames = frames.iter().map(|f| (f.start, f.end - f.start)).collect();
        self.write(&name(pid), &InPlace { frames })
    }

    /// Refuses a process that was resumed in place: no force brings back what it was at the crash.
    ///
    /// # Errors
    /// [`JournalError::InPlace`]; `Io`.
    pub fn refuse_in_place(&self, pid: i32) -> Result<(), JournalError> {
        match self.claims()?.iter().any(|(claimed, _)| *claimed == pid) {
            true => Err(JournalError::InPlace {
                pid,
                crash: self.crash.clone(),
            }),
            false => Ok(()),
        }
    }

    /// Takes a claim back: the process did not run after all.
    ///
    /// # Errors
    /// `Io`.
    pub fn forget_claim(&self, pid: i32) -> Result<(), JournalError> {
        let path = self.dir.join(name(pid));
        match fs::remove_file(&path) {
            Err(e) if e.kind() != ErrorKind::NotFound => Err(io("remove", &path, e)),
            _ => Ok(()),
        }
    }

    /// All page frames of processes that were resumed in place.
    ///
    /// # Errors
    /// `Io`: then nothing may be read of that memory.
    pub fn frames_in_use(&self) -> Result<Vec<Range<u64>>, JournalError> {
        let claims = self.claims()?;
        Ok(claims.into_iter().flat_map(|(_, frames)| frames).collect())
    }

    /// PIDs and frames of all that run, or may.
    fn claims(&self) -> Result<Vec<Claim>, JournalError> {
        claims_in(&self.dir)?
            .into_iter()
            .filter_map(|(pid, frames)| match self.check(pid) {
                Ok(()) => None,
                Err(JournalError::AlreadyRestored { .. }) => Some(Ok((pid, frames))),
                Err(error) => Some(Err(error)),
            })
            .collect()
    }
}

/// The same for whoever only reads a dump, and must not wait for a restore: also what is about to be
/// resumed.
///
/// # Errors
/// `Io`: then nothing may be read of that memory.
pub fn frames_in_use(state_dir: &Path, crash: &str) -> Result<Vec<Range<u64>>, JournalError> {
    let claims = match claims_in(&state_dir.join(crash)) {
        // Whoever may not look there may not read the memory of the dead host either.
        Err(JournalError::Io { source, .. }) if source.kind() == ErrorKind::PermissionDenied => {
            return Ok(Vec::new());
        }
        other => other?,
    };
    Ok(claims.into_iter().flat_map(|(_, frames)| frames).collect())
}

fn claims_in(dir: &Path) -> Result<Vec<Claim>, JournalError> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(io("list", dir, e)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(|e| io("list", dir, e))?.path();
        let pid = path
            .file_name()
            .and_then(|name| name.to_str())
            .and_then(|name| {
                name.strip_prefix("in-place-")?
                    .strip_suffix(".json")?
                    .parse()
                    .ok()
            });
        if let Some(pid) = pid {
            let bytes = fs::read(&path).map_err(|e| io("read", &path, e))?;
            let claim: InPlace =
                serde_json::from_slice(&bytes).map_err(|e| io("understand", &path, e.into()))?;
            let frames = claim.frames.into_iter();
            let frames = frames.map(|(first, count)| first..first.saturating_add(count));
            found.push((pid, frames.collect()));
        }
    }
    Ok(found)
}

fn name(pid: i32) -> String {
    format!("in-place-{pid}.json")
}

/// The first frame of `range` that is one of `frames`, which are in order.
fn overlap(frames: &[Range<u64>], range: &Range<u64>) -> Option<u64> {
    let next = frames.partition_point(|f| f.end <= range.start);
    let found = frames.get(next).filter(|f| f.start < range.end)?;
    Some(found.start.max(range.start))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_given_once_and_back_when_it_was_not_used() {
        let dir = std::env::temp_dir().join(format!("vmrestore-claims-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        let journal = Journal::open(&dir, "abc").expect("opens");
        assert!(frames_in_use(&dir, "abc").expect("nothing").is_empty());
        journal.claim(7, &[10..20, 512..1024]).expect("claims");
        // It did not run: what is claimed is free, but is not to be read meanwhile.
        journal.claim(8, &[15..16, 17..18]).expect("claims");
        journal.forget_claim(8).expect("forgets");
        assert_eq!(frames_in_use(&dir, "abc").expect("reads").len(), 2);
        assert!(journal.frames_in_use().expect("reads").is_empty());
        let me = std::process::id().cast_signed();
        journal.record_resuming(7, me).expect("records");
        assert_eq!(journal.frames_in_use().expect("reads"), [10..20, 512..1024]);
        for (frames, taken) in [
            (vec![0..10, 20..512, 1024..9999], None),
            (vec![0..1, 2..11], Some(10)),
            (vec![2..3, 700..701], Some(700)),
        ] {
            match (journal.claim(8, &frames), taken) {
                (Ok(()), None) => {}
                (
                    Err(JournalError::FrameTaken {
                        pid: 8,
                        pfn,
                        other: 7,
                    }),
                    Some(expected),
                ) => {
                    assert_eq!(pfn, expected);
                }
                (other, _) => panic!("{frames:?}: {other:?}"),
            }
        }
        // Its own are not given to it twice either, and are not forgotten.
        assert!(matches!(
            journal.claim(7, &[]),
            Err(JournalError::InPlace { pid: 7, .. })
        ));
        assert_eq!(journal.frames_in_use().expect("reads"), [10..20, 512..1024]);
        fs::remove_dir_all(&dir).expect("cleans up");
    }
}

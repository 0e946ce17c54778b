//! What became of each guest of each crash: one file for a crash, so that a
//! campaign can be cut off and go on.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// What became of a guest.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It went on as if nothing had happened.
    Exact,
    /// It went on, and what it had lost had been said.
    Losses,
    /// It was refused, as the crash had taken blocks from its disk's image, and
    /// went on with `--rescue-blocks`.
    Rescued,
    /// vmrestore said beforehand that it cannot be brought back.
    Refused,
    /// vmrestore tried, failed, and said so.
    Failed,
    /// vmrestore said that all is well, and it was not.
    Wrong,
    /// The host could not be asked any more after its reboot.
    Unjudged,
}

/// One guest of one crash.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Fate {
    /// Its name on the host.
    pub name: String,
    /// Its configuration.
    pub flavour: String,
    /// What it was doing.
    pub doing: String,
    /// Where its vCPUs were, in vmrestore's words.
    pub vcpus: String,
    /// What became of it.
    pub outcome: Outcome,
    /// Why, in words, where it is not exact.
    pub why: String,
    /// Number of its last line before the crash, and at the end.
    pub lines: (u64, u64),
}

/// One crash.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Crash {
    /// Its number in the campaign.
    pub number: u64,
    /// CPUs of the host that died.
    pub host_cpus: u32,
    /// How it died.
    pub death: String,
    /// Whether the host had the keeper loaded.
    #[serde(default)]
    pub keeper: bool,
    /// vmrestore's own name for its version.
    pub version: String,
    /// Attempts that the lab lost before the crash.
    pub lost_attempts: Vec<String>,
    /// Its guests.
    pub fates: Vec<Fate>,
}

impl Crash {
    fn path(dir: &Path, number: u64) -> PathBuf {
        dir.join(format!("crash-{number:04}.json"))
    }

    /// The crash of that number, if it has been had.
    #[must_use]
    pub fn had(dir: &Path, number: u64) -> Option<Self> {
        serde_json::from_slice(&std::fs::read(Self::path(dir, number)).ok()?).ok()
    }

    /// Writes it down; the file is there whole, or not at all.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn keep(&self, dir: &Path) -> Result<()> {
        let path = Self::path(dir, self.number);
        let work = path.with_extension("work");
        std::fs::write(&work, serde_json::to_vec_pretty(self)?)
            .and_then(|()| std::fs::rename(&work, &path))
            .with_context(|| path.display().to_string())
    }

    /// All that have been had, in order.
    #[must_use]
    pub fn all(dir: &Path) -> Vec<Self> {
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        let mut crashes: Vec<Self> = entries
            .filter(|entry| {
                let name = entry.file_name();
                name.to_string_lossy().starts_with("crash-")
                    && !name.to_string_lossy().contains("work")
            })
            .filter_map(|entry| serde_json::from_slice(&std::fs::read(entry.path()).ok()?).ok())
            .collect();
        crashes.sort_by_key(|crash| crash.number);
        crashes
    }
}

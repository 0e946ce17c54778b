//! What is said of a host after its panic: on the console, and in a file that outlives the reset.

use crate::cli::table::utc;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

/// The file's name in the state directory.
pub const NAME: &str = "after-panic.log";

/// Where it goes.
#[derive(Debug, Default)]
pub struct Log {
    file: Option<File>,
    /// Said before there was a file.
    early: Vec<String>,
}

impl Log {
    pub fn new() -> Self {
        Self::default()
    }

    /// From now on also into the state directory, if that can be.
    pub fn keep_in(&mut self, state_dir: &Path) {
        let path = state_dir.join(NAME);
        let opened = std::fs::create_dir_all(state_dir)
            .and_then(|()| OpenOptions::new().create(true).append(true).open(&path));
        match opened {
            Ok(file) => {
                self.file = Some(file);
                for line in std::mem::take(&mut self.early) {
                    self.write(&line);
                }
            }
            Err(error) => self.say(format!("{}: {error}", path.display())),
        }
    }

    /// Nothing goes into the file any more, and what did is on its disk.
    pub fn close(&mut self) {
        if let Some(file) = self.file.take() {
            let _ = file.sync_all();
        }
    }

    /// One line.
    pub fn say(&mut self, what: impl AsRef<str>) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = now.map_or(0, |n| i64::try_from(n.as_secs()).unwrap_or(0));
        let what = what.as_ref().replace(|c: char| c.is_control(), "?");
        // Nobody may hear it; that must not end anything.
        let _ = writeln!(std::io::stderr(), "vmrestore: {what}");
        let line = format!("{} {what}\n", utc(now));
        match self.file {
            Some(_) => self.write(&line),
            None => self.early.push(line),
        }
    }

    fn write(&mut self, line: &str) {
        if let Some(file) = &mut self.file {
            let _ = file.write_all(line.as_bytes());
        }
    }
}

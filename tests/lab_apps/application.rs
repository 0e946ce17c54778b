//! One application: what its script in tests/programs/apps says is to become of it.

use anyhow::{Context, Result};
use std::path::{Path, PathBuf};

/// Where the scripts are.
pub fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs/apps")
}

/// All processes of the host but the kernel's own.
pub const PROCESSES: &str = "ps --ppid 2 -p 2 --deselect -o pid,ppid,stat,time,args";

/// The host's shell command for a step of an application's script before the crash.
pub fn step(name: &str, step: &str) -> String {
    format!("bash /data/apps/programs/app.sh {name} {step}")
}

/// The same after it: those that were running have their own open.
pub fn step_after(name: &str, step: &str) -> String {
    format!("bash /tools/apps/app.sh {name} {step}")
}

/// An application and what is expected.
#[derive(Clone, Debug)]
pub struct Application {
    /// Its script's name, without `.sh`.
    pub name: String,
    /// What the fidelity report may say of it.
    pub may: Vec<String>,
    /// It is not restored, and the error has these words.
    pub refused: Option<String>,
}

impl Application {
    /// Reads the comments at the top of its script.
    pub fn read(name: &str) -> Result<Self> {
        let path = sources().join(format!("{name}.sh"));
        let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let said = |word: &str| -> Vec<String> {
            text.lines()
                .filter_map(|line| line.strip_prefix(&format!("# {word}: ")))
                .map(str::to_owned)
                .collect()
        };
        Ok(Self {
            name: name.to_owned(),
            may: said("may"),
            refused: said("refused").pop(),
        })
    }
}

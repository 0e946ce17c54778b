//! What the lab no longer needs on the disk.

use std::path::Path;

use anyhow::{Context, Result};

/// Removes the files of all runs below the lab's directory whose process has ended.
///
/// # Errors
/// A run's files that cannot be removed.
pub fn ended_runs(dir: &Path) -> Result<()> {
    for entry in std::fs::read_dir(dir.join("runs")).into_iter().flatten() {
        let path = entry?.path();
        if !is_going_on(&path) {
            std::fs::remove_dir_all(&path).with_context(|| path.display().to_string())?;
        }
    }
    Ok(())
}

/// Removes all cached dumps.
///
/// # Errors
/// A dump that cannot be removed.
pub fn dumps(dir: &Path) -> Result<()> {
    let dumps = dir.join("dumps");
    if dumps.exists() {
        std::fs::remove_dir_all(&dumps).with_context(|| dumps.display().to_string())?;
    }
    Ok(())
}

/// [`crate::Lab::new_run`] names a run by its process.
fn is_going_on(run: &Path) -> bool {
    let name = run.file_name().unwrap_or_default().to_string_lossy();
    let pid = name.split('-').next().and_then(|pid| pid.parse().ok());
    pid.is_some_and(|pid: u32| Path::new(&format!("/proc/{pid}")).exists())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_that_goes_on_is_left_alone() {
        let dir = std::env::temp_dir().join(format!("lab-clean-{}", std::process::id()));
        let mine = dir.join(format!("runs/{}-1", std::process::id()));
        // No process has a number above 2^22.
        let ended = dir.join("runs/4194305-2.policy");
        for run in [&mine, &ended] {
            std::fs::create_dir_all(run).unwrap();
        }
        ended_runs(&dir).unwrap();
        assert!(mine.exists() && !ended.exists());
        std::fs::remove_dir_all(dir).unwrap();
    }
}

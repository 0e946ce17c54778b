//! A program's time and the most memory that it held.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

/// One run of a program, from its start to its end.
#[derive(Clone, Copy, Debug)]
pub struct Usage {
    /// Wall-clock time.
    pub time: Duration,
    /// KiB. The largest resident set, as the kernel counted it.
    pub peak_kib: u64,
}

/// Runs a program, which must succeed, and throws away what it prints.
pub fn run(command: &mut Command) -> Result<Usage> {
    // A program inherits the peak of the process that starts it: Linux keeps the
    // high-water mark of the memory that exec drops. So ours must not stand.
    std::fs::write("/proc/self/clear_refs", "5").context("/proc/self/clear_refs")?;
    let started = Instant::now();
    let child = command
        .stdout(Stdio::null())
        .spawn()
        .with_context(|| format!("{command:?}"))?;
    let pid = i32::try_from(child.id())?;
    let mut status = 0;
    // SAFETY: all zeros is a valid `rusage`.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are to live variables of the right types. The child
    // is ours and nobody else waits for it: `child` is dropped without waiting.
    let waited = unsafe { libc::wait4(pid, &mut status, 0, &mut usage) };
    ensure!(waited == pid, "wait4: {}", std::io::Error::last_os_error());
    ensure!(status == 0, "{command:?}: wait status {status:#x}");
    Ok(Usage {
        time: started.elapsed(),
        peak_kib: usage.ru_maxrss.try_into()?,
    })
}

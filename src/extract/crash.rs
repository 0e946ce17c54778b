//! How the host died: when, where and of what, so far as the dump can say.

use super::panic_lines;
use crate::dump::Dump;
use crate::kernel::{FirstLook, Kernel, KernelError, LogRecord, UtsNames, VmcoreInfo};
use crate::task;
use serde::Serialize;
use std::sync::Arc;

/// Records of the log that are looked through: those of an oops on a machine with hundreds of CPUs.
const LAST_RECORDS: usize = 4096;

/// How the host died. What the dump does not tell is left out.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Crash {
    /// Seconds since 1970: of the panic by the kernel's own note, else of its last log line.
    pub time: Option<i64>,
    /// Since the boot; by the log alone where no more can be read.
    pub uptime_seconds: Option<u64>,
    /// `uname -n`.
    pub hostname: Option<String>,
    /// `uname -r`.
    pub release: Option<String>,
    /// `uname -v`: the build, with the distribution's own version.
    pub version: Option<String>,
    /// The linker's ID of vmlinux, hexadecimal.
    pub build_id: Option<String>,
    /// The line that says what it died of.
    pub message: Option<String>,
    /// The lines of the log that lead to it.
    pub log: Vec<LogLine>,
    /// The CPU that panicked.
    pub cpu: Option<u32>,
    /// What ran on it: PID of the thread, its name.
    pub pid: Option<i32>,
    /// The thread's name.
    pub comm: Option<String>,
    /// It did not die: it was stopped from outside, as by a hypervisor. None when that cannot be
    /// told.
    pub stopped_from_outside: Option<bool>,
    /// Why the log could not be read.
    pub log_unreadable: Option<String>,
}

/// A line of the log.
#[derive(Clone, Debug, Serialize)]
pub struct LogLine {
    /// As `dmesg` shows it. Seconds.
    pub seconds: f64,
    /// Its text, without control characters.
    pub text: String,
}

impl Crash {
    /// What can be told by the dump's VMCOREINFO note and a few pages of the kernel's data.
    pub fn at_first_look(dump: &Arc<Dump>) -> Crash {
        let Some(note) = dump.vmcoreinfo() else {
            return Crash::default();
        };
        let info = VmcoreInfo::parse(note);
        let look = FirstLook::new(dump.clone(), note);
        let (names, log) = match &look {
            Ok(look) => (look.names(), look.log(LAST_RECORDS)),
            Err(error) => (Err(error.clone()), Err(error.clone())),
        };
        // The log's clock goes from the boot on, about.
        let newest = log.iter().flatten().map(|r| r.time_ns).max();
        Crash {
            uptime_seconds: newest.map(|ns| ns / 1_000_000_000),
            ..Crash::of(&info, names, log)
        }
    }

    /// What can be told when the kernel can be read.
    pub fn of_kernel(kernel: &Kernel) -> Crash {
        let mut crash = Crash::of(
            kernel.vmcoreinfo(),
            kernel.names(),
            kernel.log(LAST_RECORDS),
        );
        if let Ok(host) = task::host(kernel) {
            let seconds = |ns: i64| ns.div_euclid(1_000_000_000);
            crash.time = crash.time.or(Some(seconds(host.realtime_ns)));
            crash.uptime_seconds = u64::try_from(seconds(host.boottime_ns)).ok();
        }
        crash.cpu = panic_cpu(kernel);
        crash.stopped_from_outside = stopped_from_outside(kernel);
        if let Some((pid, comm)) = crash.cpu.and_then(|cpu| running(kernel, cpu).ok()) {
            crash.pid = Some(pid);
            crash.comm = Some(comm);
        }
        crash
    }

    fn of(
        info: &VmcoreInfo,
        names: Result<UtsNames, KernelError>,
        log: Result<Vec<LogRecord>, KernelError>,
    ) -> Crash {
        let names = names.unwrap_or_default();
        let some = |s: &str| (!s.is_empty()).then(|| clean(s));
        let (log, log_unreadable) = match log {
            Ok(log) => (log, None),
            Err(error) => (Vec::new(), Some(chain(&error))),
        };
        let said = panic_lines::pick(&log);
        Crash {
            time: info.get("CRASHTIME").and_then(|t| t.parse().ok()),
            hostname: some(&names.nodename),
            release: some(info.get("OSRELEASE").unwrap_or(&names.release)),
            version: some(&names.version),
            build_id: info.get("BUILD-ID").and_then(some),
            message: said.message,
            log: said
                .lines
                .into_iter()
                .map(|(ns, text)| LogLine {
                    seconds: ns as f64 / 1e9,
                    text,
                })
                .collect(),
            log_unreadable,
            ..Crash::default()
        }
    }
}

/// PANIC_CPU_INVALID. Linux include/linux/panic.h.
const NO_CPU: u32 = u32::MAX;

fn panic_cpu(kernel: &Kernel) -> Option<u32> {
    let cpu = kernel.read_u32(kernel.symbol("panic_cpu").ok()?).ok()?;
    (cpu != NO_CPU).then_some(cpu)
}

/// The host did not panic: it was stopped, as by a hypervisor, and no CPU was told to put its
/// registers down.
pub(super) fn stopped_from_outside(kernel: &Kernel) -> Option<bool> {
    let cpu = kernel.read_u32(kernel.symbol("panic_cpu").ok()?).ok()?;
    Some(cpu == NO_CPU)
}

/// The thread that a CPU ran: its PID and name.
fn running(kernel: &Kernel, cpu: u32) -> Result<(i32, String), KernelError> {
    let queue = kernel.per_cpu(kernel.symbol("runqueues")?, cpu)?;
    let task = kernel.object("rq", queue)?.follow("curr")?;
    let pid = i32::try_from(task.i("pid")?).unwrap_or(0);
    Ok((pid, clean(&task.get("comm")?.string()?)))
}

fn clean(text: &str) -> String {
    text.replace(|c: char| c.is_control(), "?")
}

fn chain(error: &KernelError) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

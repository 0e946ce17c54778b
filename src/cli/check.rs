//! `vmrestore check`: can it be restored here? And without a dump: would the
//! guests of this host survive a crash?

use super::exit::{Exit, Failure};
use super::output::print_json;
use super::table::bytes;
use crate::dump::{Dump, PAGE_SIZE, PageCounts};
use crate::extract::coverage::State;
use crate::extract::{DeadHost, ExtractError};
use crate::restore::{disks, kvm};
use serde::Serialize;
use std::fs;
use std::path::Path;
use std::sync::Arc;

/// One thing that was looked at.
#[derive(Debug, Serialize)]
struct Finding {
    /// What was looked at.
    what: String,
    /// What was seen.
    found: String,
    verdict: Verdict,
    /// What to do when it is not good.
    hint: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Good,
    /// Worth knowing; nothing speaks against a restore.
    Note,
    Bad,
}

#[derive(Serialize)]
struct Document<'a> {
    schema_version: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pages: Option<PageCounts>,
    findings: &'a [Finding],
    exit_code: u8,
}

/// Checks a dump against this host, or this host alone.
///
/// # Errors
/// When the dump cannot be read.
pub fn run(dump: Option<&Path>, json: bool) -> Result<Exit, Failure> {
    let mut findings = Findings::default();
    let mut pages = None;
    match dump {
        Some(path) => pages = Some(check_dump(path, &mut findings)?),
        None => check_host(&mut findings),
    }
    let exit = findings.exit;
    if json {
        let document = Document {
            schema_version: super::SCHEMA_VERSION,
            pages,
            findings: &findings.list,
            exit_code: exit as u8,
        };
        print_json(&document)?;
    } else {
        findings.print();
    }
    Ok(exit)
}

#[derive(Default)]
struct Findings {
    list: Vec<Finding>,
    exit: Exit,
}

impl Findings {
    fn good(&mut self, what: impl Into<String>, found: impl Into<String>) {
        self.list.push(Finding {
            what: what.into(),
            found: found.into(),
            verdict: Verdict::Good,
            hint: None,
        });
    }

    fn note(&mut self, what: impl Into<String>, found: impl Into<String>) {
        self.list.push(Finding {
            what: what.into(),
            found: found.into(),
            verdict: Verdict::Note,
            hint: None,
        });
    }

    fn bad(&mut self, exit: Exit, what: impl Into<String>, found: impl Into<String>, hint: &str) {
        if self.exit == Exit::Done {
            self.exit = exit;
        }
        self.list.push(Finding {
            what: what.into(),
            found: found.into(),
            verdict: Verdict::Bad,
            hint: Some(hint.to_owned()),
        });
    }

    fn print(&self) {
        let width = self
            .list
            .iter()
            .map(|f| f.what.chars().count())
            .max()
            .unwrap_or(0);
        for f in &self.list {
            let mark = match f.verdict {
                Verdict::Good => "ok  ",
                Verdict::Note => "note",
                Verdict::Bad => "BAD ",
            };
            println!("{mark}  {:<width$}  {}", f.what, f.found);
            if let Some(hint) = &f.hint {
                println!("      {:<width$}  hint: {hint}", "");
            }
        }
    }
}

fn check_dump(path: &Path, findings: &mut Findings) -> Result<PageCounts, Failure> {
    let dump = Arc::new(Dump::open(path).map_err(ExtractError::from)?);
    findings.good("format", dump.format().to_string());
    findings.good("crash", dump.identity().to_string());
    check_level(dump.dump_level(), findings);
    let counts = dump.page_counts();
    if counts.truncated > 0 || dump.incomplete().is_some() {
        let why = dump.incomplete().unwrap_or("the file ends too early");
        findings.bad(
            Exit::Refused,
            "completeness",
            format!("{why}; {} pages are missing", counts.truncated),
            "copy the dump again, or see why the capture kernel could not finish it (disk full?)",
        );
    } else {
        findings.good("completeness", "whole");
    }
    findings.good(
        "pages",
        format!(
            "{} in the dump, {} left out, of {}",
            percent(counts.present, counts),
            percent(counts.filtered, counts),
            bytes((counts.present + counts.filtered + counts.truncated) * PAGE_SIZE)
        ),
    );
    match DeadHost::of(dump) {
        Ok(dead) => {
            findings.good("dead kernel", dead.kernel().release());
            check_kernel_here(dead.kernel().release(), findings);
            check_guests(&dead, findings)?;
        }
        Err(error) => {
            let failure = Failure::from(error);
            findings.bad(failure.exit, "dead kernel", failure.chain(), &failure.hint);
        }
    }
    Ok(counts)
}

fn percent(part: u64, counts: PageCounts) -> String {
    let all = counts.present + counts.filtered + counts.truncated;
    format!("{:.1} %", part as f64 * 100.0 / all.max(1) as f64)
}

fn check_level(level: Option<u32>, findings: &mut Findings) {
    const HINT: &str = "use makedumpfile -d 17: guests and processes stay whole (docs/kdump.md)";
    match level {
        Some(l) if l & 8 != 0 => findings.bad(
            Exit::Refused,
            "dump level",
            format!("{l}: the memory of guests and processes was left out"),
            HINT,
        ),
        Some(l) if l & 6 != 0 => findings.bad(
            Exit::Refused,
            "dump level",
            format!("{l}: page cache was left out: shared memory and unwritten file data are gone"),
            HINT,
        ),
        Some(l) => findings.good("dump level", format!("{l}: guests and processes are in it")),
        None => findings.good("dump level", "the format does not say"),
    }
}

fn check_kernel_here(release: &str, findings: &mut Findings) {
    let here = nix::sys::utsname::uname()
        .map(|u| u.release().to_string_lossy().into_owned())
        .unwrap_or_default();
    if here == release {
        findings.good("this kernel", format!("{here}: the same"));
    } else {
        findings.bad(
            Exit::HostCannot,
            "this kernel",
            format!("{here}, the dead one was {release}"),
            "boot the same kernel; on another one a restore is tried, with the old vDSO led to the new one, but this is not proven",
        );
    }
    if nix::unistd::geteuid().is_root() {
        findings.good("rights", "root");
    } else {
        findings.bad(
            Exit::HostCannot,
            "rights",
            "not root",
            "restoring needs root",
        );
    }
}

fn check_guests(dead: &DeadHost, findings: &mut Findings) -> Result<(), Failure> {
    let guests = dead.guests()?;
    let processes = dead.processes()?;
    for guest in &guests {
        let name = format!("guest {}", guest.name.as_deref().unwrap_or(&guest.vmm));
        if let Some(why) = super::list::unsupported(guest) {
            findings.bad(
                Exit::Refused,
                name,
                why,
                "this kind of guest cannot be restored",
            );
            continue;
        }
        let task = processes
            .iter()
            .find(|p| p.pid == guest.pid)
            .map(|p| p.task);
        let Some(c) = task.and_then(|t| dead.coverage(t)) else {
            findings.bad(Exit::Unreadable, name, "its memory map cannot be read", "");
            continue;
        };
        let found = format!(
            "{} of {} pages in the dump: {}",
            c.present,
            c.total(),
            c.state()
        );
        if c.state() != State::Whole {
            findings.bad(
                Exit::Refused,
                name,
                found,
                "see the dump's level and completeness",
            );
            continue;
        }
        findings.good(&name, found);
        check_restorable(dead, guest.pid, &name, findings);
    }
    Ok(())
}

/// The guest's disks and what it needs of KVM.
fn check_restorable(dead: &DeadHost, pid: i32, name: &str, findings: &mut Findings) {
    let dataset = match dead.dataset(&[pid]) {
        Ok(dataset) => dataset,
        Err(e) => {
            let failure = Failure::from(e);
            return findings.bad(failure.exit, name, failure.chain(), &failure.hint);
        }
    };
    match disks::check(&dataset, None, false) {
        Ok(()) => findings.good(format!("{name}: disks"), "as they were at the crash"),
        Err(wrong) => {
            for e in wrong {
                let what = format!("{name}: disks");
                findings.bad(Exit::Refused, what, e.to_string(), e.hint());
            }
        }
    }
    match kvm::preflight(&dataset.vms) {
        Ok(problems) => {
            let what = format!("{name}: KVM");
            if !problems.iter().any(|p| p.fatal) {
                findings.good(&what, "this host has what it needs");
            }
            for p in problems {
                let found = format!("{}: {}", p.subject, p.what);
                if p.fatal {
                    let hint = "restore it on a host whose CPU and KVM have this";
                    findings.bad(Exit::HostCannot, &what, found, hint);
                } else {
                    findings.note(&what, found);
                }
            }
        }
        Err(e) => findings.bad(
            Exit::HostCannot,
            format!("{name}: KVM"),
            e.to_string(),
            "load the kvm_amd module, and run as root",
        ),
    }
}

/// Would the guests of this host survive a crash?
fn check_host(findings: &mut Findings) {
    let read = |path: &str| fs::read_to_string(path).ok().map(|s| s.trim().to_owned());
    match read("/sys/kernel/kexec_crash_loaded").as_deref() {
        Some("1") => findings.good("capture kernel", "loaded"),
        _ => findings.bad(
            Exit::HostCannot,
            "capture kernel",
            "not loaded: a panic would leave no dump",
            "reserve memory with crashkernel=… and load it with kdump-tools (docs/kdump.md)",
        ),
    }
    match read("/sys/kernel/kexec_crash_size").and_then(|s| s.parse::<u64>().ok()) {
        Some(size) if size >= 96 << 20 => findings.good("crashkernel", bytes(size)),
        Some(size) => findings.bad(
            Exit::HostCannot,
            "crashkernel",
            format!("{} reserved", bytes(size)),
            "reserve at least 192M",
        ),
        None => findings.bad(
            Exit::HostCannot,
            "crashkernel",
            "this kernel cannot reserve memory for a capture kernel",
            "a kernel with CONFIG_CRASH_DUMP is needed",
        ),
    }
    match makedumpfile_level() {
        Some((path, level)) if level & 14 == 0 => {
            findings.good("dump level", format!("{level} in {path}"));
        }
        Some((path, level)) => findings.bad(
            Exit::HostCannot,
            "dump level",
            format!("{level} in {path}: guests' memory would be left out"),
            "set makedumpfile's -d to 17",
        ),
        None => findings.bad(
            Exit::HostCannot,
            "dump level",
            "no kdump configuration was found",
            "with kdump-tools: MAKEDUMP_ARGS=\"-c -d 17\" in /etc/default/kdump-tools",
        ),
    }
    if Path::new("/sys/kernel/btf/vmlinux").exists() {
        findings.good("kernel types", "the kernel carries its BTF");
    } else {
        findings.bad(
            Exit::HostCannot,
            "kernel types",
            "this kernel has no BTF: a dump of it cannot be read",
            "use a kernel with CONFIG_DEBUG_INFO_BTF (distributions' kernels have it)",
        );
    }
}

/// The `-d` level in the distribution's kdump configuration.
fn makedumpfile_level() -> Option<(&'static str, u32)> {
    [
        "/etc/default/kdump-tools",
        "/etc/kdump.conf",
        "/etc/sysconfig/kdump",
    ]
    .into_iter()
    .find_map(|path| {
        let text = fs::read_to_string(path).ok()?;
        let line = text
            .lines()
            .map(str::trim)
            .filter(|l| !l.starts_with('#'))
            .find(|l| l.starts_with("MAKEDUMP_ARGS") || l.contains("makedumpfile"))?;
        let words = line.split([' ', '"', '\'']);
        let level = words.skip_while(|w| *w != "-d").nth(1)?;
        Some((path, level.parse().ok()?))
    })
}

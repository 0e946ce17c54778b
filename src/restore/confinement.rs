//! What security modules confine threads to: AppArmor's labels.

use super::error::Context;
use super::inject::Tracee;
use super::stub::Stub;
use super::{Errno, RestoreError, calls};
use crate::dataset::{Confinement, Dataset, Fidelity, Process, Thread};
use std::fs;

/// Whether this kernel confines by AppArmor; and the labels that it knows, as "NAME (MODE)", where
/// securityfs is mounted.
const ENABLED: &str = "/sys/module/apparmor/parameters/enabled";
const PROFILES: &str = "/sys/kernel/security/apparmor/profiles";

/// What is refused, and what helps.
const WHAT: &str = "confinement";
const HINT: &str = "load its profile (apparmor_parser -r FILE, of /etc/apparmor.d); --force \
                    brings it back without";

/// The hint for what a thread had given up, and would have again.
pub(super) const LOOSER: &str = "without it it could do more than it was allowed to; --force brings it back \
                                 without";

/// Refuses threads whose confinement is not known, or not to be had here: without it they could do
/// more than they were allowed to, and nobody would see it. Where that is `forced`, what they lose.
///
/// # Errors
/// The first such thread.
pub fn check(dataset: &Dataset, forced: bool) -> Result<Vec<Fidelity>, RestoreError> {
    let all = dataset.processes.iter();
    let threads = all.flat_map(|p| p.threads.iter().map(move |t| (p, t)));
    let mut here = None;
    let mut losses = Vec::new();
    for (process, thread) in threads {
        let confinement = &thread.confinement;
        // The dataset's own report says so already.
        if let Some(why) = confinement.refused.as_ref().filter(|_| !forced) {
            return Err(refused(process, thread, WHAT, why.clone(), LOOSER));
        }
        for label in labels(confinement) {
            let here = here.get_or_insert_with(Here::look);
            match here.lacks(label) {
                None => {}
                Some(why) if forced => losses.push(lost(process, thread, &why)),
                Some(why) => return Err(refused(process, thread, WHAT, why, HINT)),
            }
        }
    }
    Ok(losses)
}

fn lost(process: &Process, thread: &Thread, why: &str) -> Fidelity {
    Fidelity::lost(
        format!("pid {} thread {}", process.pid, thread.tid),
        "AppArmor label",
        format!("{why}: it lives on without"),
    )
}

/// A thread that would be less confined than it was.
pub(super) fn refused(
    process: &Process,
    thread: &Thread,
    what: &str,
    why: String,
    hint: &'static str,
) -> RestoreError {
    RestoreError::Refused {
        pid: process.pid,
        what: format!("the {what} of thread {} ({})", thread.tid, thread.comm),
        why,
        hint,
    }
}

fn labels(confinement: &Confinement) -> impl Iterator<Item = &String> {
    let Confinement {
        apparmor,
        apparmor_exec,
        ..
    } = confinement;
    apparmor.iter().chain(apparmor_exec)
}

/// AppArmor on this host.
struct Here {
    enabled: bool,
    profiles: Option<String>,
}

impl Here {
    fn look() -> Self {
        Self {
            enabled: fs::read_to_string(ENABLED).is_ok_and(|text| text.starts_with('Y')),
            profiles: fs::read_to_string(PROFILES).ok(),
        }
    }

    /// Why a label cannot be had; what cannot be told beforehand is seen when it is set.
    fn lacks(&self, label: &str) -> Option<String> {
        if !self.enabled {
            return Some(format!(
                "its AppArmor label is {label}, and this kernel runs without AppArmor"
            ));
        }
        let profiles = self.profiles.as_ref()?;
        let names: Vec<&str> = profiles
            .lines()
            .filter_map(|line| line.rsplit_once(" (").map(|(name, _)| name))
            .collect();
        let missing = label.split("//&").find(|part| !names.contains(part))?;
        Some(format!("AppArmor's profile {missing} is not loaded here"))
    }
}

/// Puts a process's threads under their labels, each by itself, and closes the way to /proc that was
/// left open for it. What follows must need no more than they may.
///
/// # Errors
/// A label that is not to be had, unless `forced`; or it is another one afterwards.
pub fn enter(
    stub: &mut Stub<'_>,
    way: i32,
    forced: bool,
    notes: &mut Vec<Fidelity>,
) -> Result<(), RestoreError> {
    let process = stub.process;
    if !is_confined(process) {
        return Ok(());
    }
    let here = Here::look();
    for (tracee, thread) in stub.threads.iter_mut().zip(&process.threads) {
        let confinement = &thread.confinement;
        let mut set = |attribute: &str, command: &str, label: &str| {
            if forced && here.lacks(label).is_some() {
                return Ok(());
            }
            let said = write(tracee, attribute, &format!("{command} {label}"));
            let why = match said {
                Ok(()) if has(tracee.tid, attribute, label) => return Ok(()),
                Ok(()) => format!("it has not got its AppArmor label {label}"),
                Err(errno) => format!("AppArmor refuses the label {label}: {errno}"),
            };
            if forced {
                notes.push(lost(process, thread, &why));
                return Ok(());
            }
            Err(refused(process, thread, WHAT, why, HINT))
        };
        // The one of its next program first: once confined it might not be let.
        if let Some(label) = &confinement.apparmor_exec {
            set("exec", "exec", label)?;
        }
        if let Some(label) = &confinement.apparmor {
            set("current", "changeprofile", label)?;
        }
    }
    match calls::close(stub.leader()?, way) {
        // Of a table that two processes share the other has closed it.
        Ok(()) | Err(Errno(libc::EBADF)) => Ok(()),
        refused => refused.during(process.pid, || "close".into()),
    }
}

/// Whether the way to /proc is needed to the end.
pub fn is_confined(process: &Process) -> bool {
    let mut threads = process.threads.iter().map(|t| &t.confinement);
    threads.any(|confinement| labels(confinement).next().is_some())
}

/// Writes an attribute of the thread's own; only it itself can.
fn write(tracee: &mut Tracee, attribute: &str, text: &str) -> Result<(), Errno> {
    let open = |tracee: &mut Tracee, dir: &str| {
        let path = format!("thread-self/attr/{dir}{attribute}");
        calls::open_in_proc(tracee, &path, libc::O_WRONLY | libc::O_CLOEXEC)
    };
    // Its own directory there is since Linux 5.8.
    let fd = open(tracee, "apparmor/").or_else(|_| open(tracee, ""))?;
    let number = u64::from(fd.cast_unsigned());
    let written = calls::put(tracee, text.as_bytes())
        .and_then(|at| calls::plain(tracee, libc::SYS_write, [number, at, text.len() as u64]));
    calls::close(tracee, fd)?;
    written.map(drop)
}

/// Whether a thread's attribute is this label, in whatever mode its profile is.
fn has(tid: i32, attribute: &str, label: &str) -> bool {
    let read = |dir: &str| fs::read_to_string(format!("/proc/{tid}/attr/{dir}{attribute}"));
    let is = read("apparmor/").or_else(|_| read("")).unwrap_or_default();
    let is = is.trim_end_matches('\n');
    is == label || is.rsplit_once(" (").is_some_and(|(name, _)| name == label)
}

#[cfg(test)]
mod tests {
    use super::Here;

    #[test]
    fn what_is_not_loaded_here_is_named() {
        let here = Here {
            enabled: true,
            profiles: Some("/usr/bin/man (enforce)\nman_groff (complain)\na//b (enforce)\n".into()),
        };
        assert_eq!(here.lacks("/usr/bin/man"), None);
        assert_eq!(here.lacks("a//b"), None);
        assert_eq!(here.lacks("man_groff//&/usr/bin/man"), None);
        assert!(here.lacks("a").is_some_and(|why| why.contains(" a ")));
        assert!(
            here.lacks("man_groff//&other")
                .is_some_and(|why| why.contains("other"))
        );
        // Where securityfs is not mounted, it is seen when the label is set.
        let unknown = Here {
            enabled: true,
            profiles: None,
        };
        assert_eq!(unknown.lacks("a"), None);
        let off = Here {
            enabled: false,
            profiles: None,
        };
        assert!(off.lacks("a").is_some());
    }
}

//! Whether what `vmrestore prepare` made is still right for the guests that run now
//! (docs/in-place.md).

use super::findings::Findings;
use super::in_place::Need;
use crate::cli::exit::Exit;
use crate::cli::prepare::plan::{self, Plan};
use crate::cli::prepare::{Tree, hook, initramfs};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

const WHAT: &str = "prepared";
const AGAIN: &str = "run `vmrestore prepare` again, as it was run before (docs/in-place.md)";

/// Says it, of the guests that run; gives what an initramfs takes of the capture kernel's memory.
/// Bytes.
pub(super) fn check(needs: &[Need], findings: &mut Findings) -> u64 {
    let path = Path::new(plan::DEFAULT);
    let plan = match Plan::load(path) {
        Ok(Some(plan)) => plan,
        Ok(None) => {
            findings.note(
                WHAT,
                "nothing is, for guests to go on in the capture kernel: `vmrestore prepare` does it",
            );
            return 0;
        }
        Err(error) => {
            findings.bad(Exit::HostCannot, WHAT, error.to_string(), AGAIN);
            return 0;
        }
    };
    findings.good(
        WHAT,
        format!(
            "{} of {}, for kernel {}",
            path.display(),
            plan.made,
            plan.kernel
        ),
    );
    guests(&plan, needs, findings);
    files(&plan, findings);
    modules(&plan, findings);
    image(&plan, findings);
    loaded(&plan, findings);
    installed(&plan, findings);
    let image = plan.initramfs.as_ref();
    image.map_or(0, |i| i.size.saturating_add(i.unpacked))
}

/// Those that run are in the order.
fn guests(plan: &Plan, needs: &[Need], findings: &mut Findings) {
    let unplanned: Vec<&str> = needs
        .iter()
        .filter(|need| {
            !plan
                .guests
                .iter()
                .any(|g| g.name == need.name && g.vcpus > 0)
        })
        .map(|need| need.name.as_str())
        .collect();
    if unplanned.is_empty() {
        let order: Vec<&str> = plan.guests.iter().map(|g| g.name.as_str()).collect();
        findings.good(WHAT, format!("guests, in this order: {}", order.join(", ")));
    } else {
        findings.bad(
            Exit::HostCannot,
            WHAT,
            format!(
                "{}: not known when it was made; what they need may lack, and they come last",
                unplanned.join(", ")
            ),
            AGAIN,
        );
    }
    for guest in &plan.guests {
        for why in &guest.cannot {
            findings.note(WHAT, format!("{} cannot go on in place: {why}", guest.name));
        }
    }
}

/// VMMs' programs and libraries are what they were, and with an initramfs in it as they are.
fn files(plan: &Plan, findings: &mut Findings) {
    let mut all_same = true;
    for file in &plan.files {
        let wrong = match initramfs::facts(&file.path) {
            Err(error) => error.to_string(),
            Ok(now) if (now.size, now.mtime_ns) != (file.size, file.mtime_ns) => {
                "another file than when it was made".into()
            }
            Ok(_) => continue,
        };
        all_same = false;
        let what = format!("{}: {wrong}", file.path.display());
        findings.bad(Exit::HostCannot, WHAT, what, AGAIN);
    }
    if all_same {
        findings.good(
            WHAT,
            format!("{} files of VMMs, unchanged", plan.files.len()),
        );
    }
}

/// Modules are there, and of the capture kernel's version.
fn modules(plan: &Plan, findings: &mut Findings) {
    let mut good = 0;
    for module in &plan.modules {
        match Tree::release_of(&module.path) {
            Ok(Some(release)) if release != plan.kernel => findings.bad(
                Exit::HostCannot,
                WHAT,
                format!(
                    "{} is of kernel {release}, and the plan for {}",
                    module.path.display(),
                    plan.kernel
                ),
                AGAIN,
            ),
            Ok(_) => good += 1,
            Err(why) => findings.bad(
                Exit::HostCannot,
                WHAT,
                format!("module {}: {why}", module.name),
                AGAIN,
            ),
        }
    }
    if good == plan.modules.len() {
        findings.good(WHAT, format!("{good} kernel modules of {}", plan.kernel));
    }
}

/// The initramfs is the one that was made, and no module in it is older than the host's.
fn image(plan: &Plan, findings: &mut Findings) {
    let Some(image) = &plan.initramfs else {
        return;
    };
    let (size, changed) = match fs::metadata(&image.path) {
        Ok(meta) => (meta.size(), meta.mtime()),
        Err(error) => {
            let what = format!("{}: {error}", image.path.display());
            return findings.bad(Exit::HostCannot, WHAT, what, AGAIN);
        }
    };
    // Its size is not yet in the plan that is in it, and in the one beside it it is.
    let newer = plan.modules.iter().map(|m| &m.path);
    let newer = newer.filter(|p| fs::metadata(p).is_ok_and(|m| m.mtime().max(m.ctime()) > changed));
    let newer: Vec<String> = newer.map(|p| p.display().to_string()).collect();
    if size != image.size {
        let what = format!("{}: not the one that was made", image.path.display());
        findings.bad(Exit::HostCannot, WHAT, what, AGAIN);
    } else if let Some(first) = newer.first() {
        let what = format!("{}: older than {first}", image.path.display());
        findings.bad(Exit::HostCannot, WHAT, what, AGAIN);
    } else {
        findings.good(
            WHAT,
            format!("{}, newer than what is in it", image.path.display()),
        );
    }
}

/// What kdump-tools loaded last, as far as it says so.
fn loaded(plan: &Plan, findings: &mut Findings) {
    let Ok(command) = fs::read_to_string("/var/crash/kexec_cmd") else {
        return;
    };
    let word = |start: &str| {
        command
            .split([' ', '"'])
            .find_map(|w| w.strip_prefix(start))
    };
    if let (Some(image), Some(loaded)) = (&plan.initramfs, word("--initrd="))
        && Path::new(loaded) != image.path
    {
        findings.note(
            WHAT,
            format!(
                "kdump-tools loads {loaded}, and not {}",
                image.path.display()
            ),
        );
    }
    let cpus: usize = word("nr_cpus=").and_then(|n| n.parse().ok()).unwrap_or(1);
    let vcpus: usize = plan.guests.iter().map(|g| g.vcpus as usize).sum();
    if cpus > 1 && word("disable_cpu_apicid=").is_none() {
        findings.bad(
            Exit::HostCannot,
            WHAT,
            format!("nr_cpus={cpus} without disable_cpu_apicid=: a panic on any CPU but the first resets the machine"),
            "`vmrestore prepare --dry-run` says the words to use",
        );
    } else if cpus < vcpus {
        findings.note(
            WHAT,
            format!("the capture kernel has {cpus} CPUs (nr_cpus=), and the guests {vcpus}"),
        );
    }
}

/// Somebody calls vmrestore there.
fn installed(plan: &Plan, findings: &mut Findings) {
    match hook::state(Path::new("/")) {
        Ok(true) => findings.good(WHAT, "kdump-tools' hook is in"),
        Ok(false) if plan.initramfs.is_some() => {}
        Ok(false) => findings.bad(
            Exit::HostCannot,
            WHAT,
            "neither kdump-tools' hook nor an initramfs: nobody would let guests go on",
            "vmrestore prepare --install, or --initramfs FILE",
        ),
        Err(why) => findings.bad(
            Exit::HostCannot,
            WHAT,
            format!("kdump-tools' hook: {why}"),
            "vmrestore prepare --install",
        ),
    }
}

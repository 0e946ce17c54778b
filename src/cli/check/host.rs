//! Without a dump: would the guests of this host survive a crash?

use super::findings::Findings;
use super::kdump_config::{Advice, Configured, Tool};
use crate::cli::exit::Exit;
use crate::cli::table::bytes;
use std::fs;
use std::path::Path;

/// Looks at this host; what its configuration should say, when it does not.
pub(super) fn check(findings: &mut Findings) -> Vec<Advice> {
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
    let reserved = read("/sys/kernel/kexec_crash_size").and_then(|s| s.parse::<u64>().ok());
    match reserved {
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
    let advice = check_level(findings);
    if !Path::new("/sys/kernel/btf/vmlinux").exists() {
        findings.bad(
            Exit::HostCannot,
            "kernel types",
            "this kernel has no BTF: a dump of it cannot be read",
            "use a kernel with CONFIG_DEBUG_INFO_BTF (distributions' kernels have it)",
        );
    } else if is_module("kvm") && !Path::new("/sys/kernel/btf/kvm").exists() {
        findings.bad(
            Exit::HostCannot,
            "kernel types",
            "the kvm module has no BTF: guests in a dump of this kernel cannot be read",
            "use a kernel with CONFIG_DEBUG_INFO_BTF_MODULES (5.11 or newer)",
        );
    } else {
        findings.good("kernel types", "the kernel carries its BTF");
    }
    if is_module("vmrestore_keeper") {
        findings.good("keeper", "loaded: FPU registers come back exactly");
    } else {
        findings.note(
            "keeper",
            "not loaded: guests that are on a CPU at a panic lose its FPU registers (docs/keeper.md)",
        );
    }
    super::in_place::check(reserved, findings);
    advice
}

/// A module that is loaded, and not built in.
fn is_module(name: &str) -> bool {
    Path::new("/sys/module")
        .join(name)
        .join("initstate")
        .exists()
}

fn check_level(findings: &mut Findings) -> Vec<Advice> {
    let configured = Tool::ALL.into_iter().find_map(|tool| {
        let text = fs::read_to_string(tool.file()).ok()?;
        Some(tool.read(&text))
    });
    let Some(found) = configured else {
        findings.bad(
            Exit::HostCannot,
            "dump level",
            "no kdump configuration was found",
            "install your distribution's kdump (kdump-tools, kexec-tools, kdump-utils), and set its level",
        );
        return this_distribution();
    };
    report(&found, findings);
    if found.is_harmful() {
        vec![found.advice]
    } else {
        Vec::new()
    }
}

fn report(found: &Configured, findings: &mut Findings) {
    let (level, file) = (found.level_text(), found.tool.file());
    let whence = if found.explicit {
        format!("in {file}")
    } else {
        format!("by default, for {file} sets none")
    };
    if found.is_harmful() {
        findings.bad(
            Exit::HostCannot,
            "dump level",
            format!("{level} {whence}: guests' memory would be left out"),
            "set the level to 17: the line below",
        );
    } else {
        findings.good("dump level", format!("{level} {whence}"));
    }
    if found.split {
        findings.note(
            "dump files",
            "--split writes several: keep them all, and name them all",
        );
    }
    if let Some(program) = &found.packed {
        findings.note(
            "dump files",
            format!(
                "KDUMP_COMPRESSION={program} packs the dump: it must be unpacked before it is read"
            ),
        );
    }
}

/// The line for the distribution of the kernel that runs here.
fn this_distribution() -> Vec<Advice> {
    let tool = nix::sys::utsname::uname().ok().and_then(|u| {
        Tool::of_kernel(
            &u.release().to_string_lossy(),
            &u.version().to_string_lossy(),
        )
    });
    super::advice_for(tool)
}

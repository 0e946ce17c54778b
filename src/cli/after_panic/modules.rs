//! Kernel modules, loaded.

use super::log::Log;
use crate::cli::prepare::initramfs::MODULES;
use crate::cli::prepare::plan::Plan;
use crate::sys;
use std::ffi::CString;
use std::path::Path;
use std::process::Command;

/// By the host's own modprobe, which knows its configuration.
pub fn probe(plan: &Plan, log: &mut Log) {
    // A plan may be missing.
    let always = ["kvm_amd", "kvm_intel", "tun", "vhost_net"];
    let planned = plan.modules.iter().map(|m| m.name.as_str());
    let names: Vec<&str> = planned.chain(always).collect();
    for name in names {
        if is_there(name)
            || (name == "kvm_intel" || name == "kvm_amd") && is_there("kvm") && has_kvm()
        {
            continue;
        }
        let done = Command::new("modprobe").arg("-q").arg(name).status();
        if !done.as_ref().is_ok_and(|s| s.success()) && plan.modules.iter().any(|m| m.name == name)
        {
            log.say(format!("module {name} could not be loaded"));
        }
    }
}

/// Out of the initramfs.
pub fn load(plan: &Plan, log: &mut Log) {
    for module in &plan.modules {
        let path = Path::new(MODULES).join(format!("{}.ko", module.name));
        let content = match std::fs::read(&path) {
            Ok(content) => content,
            Err(error) => {
                log.say(format!("{}: {error}", path.display()));
                continue;
            }
        };
        let options = CString::new(module.options.as_str()).unwrap_or_default();
        let loaded = sys::modules::load(&content, &options).or_else(|error| {
            // Parameters may be another kernel's.
            match options.is_empty() {
                true => Err(error),
                false => sys::modules::load(&content, c""),
            }
        });
        if let Err(error) = loaded {
            log.say(format!("module {}: {error}", module.name));
        }
        // It is in the kernel now, and memory is short.
        let _ = std::fs::remove_file(&path);
    }
}

fn is_there(name: &str) -> bool {
    Path::new("/sys/module").join(name).exists()
}

fn has_kvm() -> bool {
    Path::new("/dev/kvm").exists()
}

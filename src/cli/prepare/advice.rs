//! What is left for the administrator: lines to type, and where.

use super::plan::Plan;
use crate::cli::check::in_place::{self as estimate, Need};
use crate::cli::table::bytes;
use serde::Serialize;
use std::fs;

/// CPUs of a capture kernel beyond which memory is spent for little. Each takes some of it.
const MOST_CPUS: usize = 8;

/// A line, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Advice {
    pub why: String,
    /// What to type or write.
    pub line: String,
}

/// All that this host lacks for the plan, as far as vmrestore does not set it itself.
pub fn of(plan: &Plan, needs: &[Need]) -> Vec<Advice> {
    let mut all = Vec::new();
    let number = |path: &str| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    // An initramfs is in the capture kernel's memory, packed and unpacked.
    let image = plan
        .initramfs
        .as_ref()
        .map_or(0, |i| i.size.saturating_add(i.unpacked));
    let wanted = estimate::reservation(needs, image);
    let here = number("/sys/kernel/kexec_crash_size").unwrap_or(0);
    if here < wanted {
        all.push(Advice {
            why: format!("{} are reserved for the capture kernel; these guests want more", bytes(here)),
            line: format!(
                "on the kernel's command line (/etc/default/grub.d/kdump-tools.cfg, then update-grub and a \
                 reboot): crashkernel={}M",
                wanted >> 20
            ),
        });
    }
    if number("/sys/kernel/kexec_crash_loaded") != Some(1) {
        all.push(Advice {
            why: "no capture kernel is loaded: a panic ends the guests".into(),
            line: "kdump-config load".into(),
        });
    }
    let words = capture_words(plan);
    all.push(match &plan.initramfs {
        Some(image) => Advice {
            why: "the capture kernel with this initramfs".into(),
            line: format!(
                "kexec -p /boot/vmlinuz-{} --initrd={} --append=\"console=tty0 panic=10 {words}\"",
                plan.kernel,
                image.path.display()
            ),
        },
        None => Advice {
            why: "the capture kernel's CPUs, in /etc/default/kdump-tools, then kdump-config reload".into(),
            line: format!(
                "KDUMP_CMDLINE_APPEND=\"systemd.unit=kdump-tools-dump.service usbcore.nousb {words}\""
            ),
        },
    });
    all
}

/// Words of the capture kernel's command line: as many CPUs as the guests want, and not the old boot
/// CPU, which a start from another one would reset.
fn capture_words(plan: &Plan) -> String {
    let vcpus: usize = plan.guests.iter().map(|g| g.vcpus as usize).sum();
    let here = std::thread::available_parallelism().map_or(1, usize::from);
    let cpus = vcpus.min(here).clamp(1, MOST_CPUS);
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let mut words = format!("reset_devices irqpoll nr_cpus={cpus}");
    if let Some(id) = boot_cpu(&info).filter(|_| cpus > 1) {
        words += &format!(" disable_cpu_apicid={id}");
    }
    words
}

/// The APIC ID of CPU 0.
fn boot_cpu(cpuinfo: &str) -> Option<u32> {
    let mut lines = cpuinfo.lines().map(|l| l.split_once(':'));
    let of = |line: Option<(&str, &str)>, name: &str| -> Option<String> {
        let (key, value) = line?;
        (key.trim() == name).then(|| value.trim().to_owned())
    };
    lines.find(|line| of(*line, "processor").as_deref() == Some("0"))?;
    lines.find_map(|line| of(line, "apicid")?.parse().ok())
}

/// For people.
pub fn print(all: &[Advice]) {
    if all.is_empty() {
        return;
    }
    println!("\nLEFT FOR YOU:");
    for advice in all {
        println!("      {}:", advice.why);
        println!("      {}", advice.line);
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_boot_cpu_has_its_own_number() {
        let text =
            "processor\t: 1\napicid\t\t: 7\n\nprocessor\t: 0\ninitial apicid : 4\napicid\t\t: 3\n";
        assert_eq!(super::boot_cpu(text), Some(3));
        assert_eq!(super::boot_cpu("nothing"), None);
    }
}

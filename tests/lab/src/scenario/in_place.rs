//! Hosts whose capture kernel is a host too: guests go on there where their memory lies.

use super::{DumpFile, MAIN_DUMP, Scenario};
use crate::flavours;
use crate::guest::Guest;
use crate::machine::Hardware;

/// The command line of a capture kernel that is a host.
const CAPTURE_WORDS: &str = "nr_cpus=1 irqpoll reset_devices";

/// The same with two CPUs. CPU 0, where the host was booted, can only be started by its firmware.
const TWO_CPUS: &str = "nr_cpus=2 disable_cpu_apicid=0 irqpoll reset_devices";

/// The scenario of that name.
pub(super) fn named(name: &str, base: &Scenario) -> Option<Scenario> {
    let base = Scenario {
        capture_host: Some(CAPTURE_WORDS.into()),
        ..base.clone()
    };
    Some(match name {
        "in-place" => Scenario {
            hardware: hardware(2048, 448),
            guests: vec![flavours::microvm().numbered(1)],
            ..base
        },
        "in-place-four" => Scenario {
            hardware: hardware(3072, 1024),
            guests: numbered(&["microvm", "pc", "memfd", "disk-none"])?,
            warm_up: 8,
            ..base
        },
        "in-place-256" | "in-place-2048" | "saved-256" | "saved-2048" => {
            let memory_mib = if name.ends_with("2048") { 2048 } else { 256 };
            let words = base.capture_host.clone();
            Scenario {
                hardware: hardware(memory_mib + 1152, 448),
                capture_host: words.filter(|_| name.starts_with("in-place")),
                dumps: vec![DumpFile::new(MAIN_DUMP, "-l -d 17")],
                guests: vec![flavours::all_touched(memory_mib)],
                ..base
            }
        }
        "in-place-huge" => Scenario {
            hardware: hardware(6656, 640),
            guests: before_the_crash(numbered(&["gib-pages", "memfd-huge", "hugetlbfs-private"])?),
            warm_up: 8,
            ..base
        },
        "in-place-kinds" => Scenario {
            hardware: hardware(3584, 1024),
            guests: kinds()?,
            swap_mib: 256,
            warm_up: 8,
            ..base
        },
        "in-place-swapped" => Scenario {
            hardware: Hardware {
                cpus: 1,
                ..hardware(1408, 512)
            },
            guests: vec![Guest {
                append: "lab.pause=1500".into(),
                ..flavours::microvm().numbered(1)
            }],
            swap_mib: 256,
            warm_up: 6,
            random_ms: 0,
            ..base
        },
        "in-place-order" => Scenario {
            // One of them may be CPU 0, and not to be had.
            hardware: Hardware {
                cpus: 3,
                ..hardware(2304, 448)
            },
            capture_host: Some(TWO_CPUS.into()),
            guests: (1..=4)
                .map(|n| flavours::all_touched(192).numbered(n))
                .collect(),
            warm_up: 8,
            ..base
        },
        _ => return None,
    })
}

/// A machine with so much memory, of which the capture kernel has a part.
fn hardware(memory_mib: u32, crashkernel_mib: u32) -> Hardware {
    Hardware {
        memory_mib,
        crashkernel_mib,
        ..Hardware::default()
    }
}

fn numbered(flavours: &[&str]) -> Option<Vec<Guest>> {
    flavours
        .iter()
        .zip(1..)
        .map(|(flavour, n)| Some(flavours::named(flavour)?.numbered(n)))
        .collect()
}

/// What their administrators reserve on the host, they do not in a capture kernel.
fn before_the_crash(guests: Vec<Guest>) -> Vec<Guest> {
    let not_again = |guest: Guest| Guest {
        host_setup: format!(
            "grep -q elfcorehdr= /proc/cmdline || {{ {}; }}",
            guest.host_setup
        ),
        ..guest
    };
    guests.into_iter().map(not_again).collect()
}

/// A guest in huge pages that nobody merges; one whose pages are merged; one that a test swaps out;
/// one whose memory a helper has too; one whose disk is read by native AIO past the page cache, and
/// whose network is vhost-net's; one with an io_uring.
fn kinds() -> Option<Vec<Guest>> {
    let mut guests = numbered(&[
        "thp",
        "ksm",
        "microvm",
        "memfd",
        "vhost-net",
        "disk-io-uring",
    ])?;
    guests[0].board_options = ",mem-merge=off".into();
    let native = &mut guests[4];
    // What it starts takes PIDs for a moment, which the guests are to have.
    native.host_setup += "; sleep 2";
    native.drive = "format=raw,cache=none,aio=native".into();
    native.prepare = format!(
        "dd if=/dev/zero of=/data/{{name}}.disk bs=1M count=16 2>/dev/null; sync; {}",
        native.prepare
    );
    Some(guests)
}

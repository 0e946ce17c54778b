//! Which guests run on which host in which crash of a campaign.
//!
//! Crash number `k` of every campaign is the same mix: so a campaign can be cut
//! off and go on. Its moments are random.

use crate::flavours;
use crate::guest::{Board, Guest};
use crate::machine::Hardware;
use crate::phase::Phase;
use crate::scenario::{Death, DumpFile, MAIN_DUMP, Scenario};

/// Guests on a host with one CPU, and on one with two (where the emulation of
/// many nested guests is less stable).
const GUESTS: [usize; 2] = [4, 3];
/// One host in so many has two CPUs.
const TWO_CPUS_EVERY: u64 = 3;
/// Flavours that a campaign leaves out: slow under emulation, in need of a
/// larger host, or newer than the plan. Tests of their own bring them back.
const LEFT_OUT: [&str; 4] = ["5-gib", "8-cpus", "gib-pages", "ovmf"];

/// Its QMP socket has a client, so that nobody else can reset or stop it.
const QMP_IS_TAKEN: &str = "sockets";

/// Its interrupts come from the PIT alone; at full load, beside three others on
/// one emulated CPU, it says nothing for minutes before any crash.
const NEVER_BUSY: &str = "pic";

/// What a guest does, or is in the middle of.
#[derive(Clone, Copy)]
enum Doing {
    /// A line, a tenth of a second of rest.
    Usual,
    /// Its vCPUs count without rest.
    Busy,
    /// More than a second of rest between its lines: its vCPUs are halted.
    Idle,
    /// It writes, reads and says without rest.
    Hurried,
    Booting,
    Resetting,
    Paused,
}

/// One after the other, over all guests of a campaign.
const DOING: [Doing; 12] = [
    Doing::Usual,
    Doing::Busy,
    Doing::Hurried,
    Doing::Usual,
    Doing::Idle,
    Doing::Booting,
    Doing::Usual,
    Doing::Hurried,
    Doing::Paused,
    Doing::Usual,
    Doing::Busy,
    Doing::Resetting,
];

impl Doing {
    fn apply(self, guest: Guest) -> Guest {
        let more = |words: &str| format!("{} {words}", guest.append);
        match self {
            Self::Usual => guest,
            Self::Busy => Guest {
                simd: "busy".into(),
                ..guest
            },
            Self::Idle => Guest {
                append: more("lab.pause=1500"),
                simd: "off".into(),
                ..guest
            },
            Self::Hurried => Guest {
                append: more("lab.pause=0"),
                ..guest
            },
            Self::Booting => Guest {
                phase: Phase::Booting,
                ..guest
            },
            Self::Resetting | Self::Paused if guest.flavour == QMP_IS_TAKEN => guest,
            // A reset does not empty its disk, and microvm has no way to be
            // reset but by ending.
            Self::Resetting if guest.board != Board::Microvm && guest.other_vmm.is_empty() => {
                Guest {
                    phase: Phase::Resetting,
                    ..guest
                }
            }
            Self::Paused if guest.other_vmm.is_empty() => Guest {
                phase: Phase::Paused,
                ..guest
            },
            Self::Resetting | Self::Paused => guest,
        }
    }

    const fn word(self) -> &'static str {
        match self {
            Self::Usual => "usual",
            Self::Busy => "busy",
            Self::Idle => "idle",
            Self::Hurried => "hurried",
            Self::Booting => "booting",
            Self::Resetting => "rebooting",
            Self::Paused => "paused",
        }
    }
}

/// A guest of the plan, and what it does in words.
pub struct Planned {
    /// The guest.
    pub guest: Guest,
    /// What it does at the crash.
    pub doing: &'static str,
}

/// The guests of crash number `crash`, from 1.
#[must_use]
pub fn guests(crash: u64) -> Vec<Planned> {
    let all: Vec<Guest> = flavours::all()
        .into_iter()
        .filter(|guest| !LEFT_OUT.contains(&guest.flavour.as_str()))
        .collect();
    let first: usize = (1..crash).map(count).sum();
    (first..first + count(crash))
        .zip(1..)
        .filter_map(|(index, number)| {
            // Neighbours in the list, which are of one kind, come to different
            // hosts, and each flavour meets each occupation in time.
            let guest = all.get(index * stride(all.len()) % all.len())?.clone();
            let doing = match DOING[(index + index / DOING.len()) % DOING.len()] {
                Doing::Busy if guest.flavour == NEVER_BUSY => Doing::Usual,
                doing => doing,
            };
            Some(Planned {
                guest: doing.apply(guest.numbered(number)),
                doing: doing.word(),
            })
        })
        .collect()
}

/// A step that goes through all of a list of that length.
fn stride(length: usize) -> usize {
    let gcd = |mut a: usize, mut b: usize| {
        while b != 0 {
            (a, b) = (b, a % b);
        }
        a
    };
    (7..).find(|step| gcd(*step, length) == 1).unwrap_or(1)
}

const fn has_two_cpus(crash: u64) -> bool {
    crash.is_multiple_of(TWO_CPUS_EVERY)
}

fn count(crash: u64) -> usize {
    GUESTS[usize::from(has_two_cpus(crash))]
}

/// The whole host of crash number `crash`.
#[must_use]
pub fn scenario(crash: u64, guests: &[Planned]) -> Scenario {
    Scenario {
        name: "campaign".into(),
        hardware: Hardware {
            cpus: 1 + u32::from(has_two_cpus(crash)),
            memory_mib: 2048,
            ..Hardware::default()
        },
        reboot_cpus: 1,
        guests: guests.iter().map(|planned| planned.guest.clone()).collect(),
        process: None,
        // Half of the hosts, of each way to die.
        keeper: crash % 4 >= 2,
        swap_mib: 0,
        capture_host: None,
        death: match crash % 2 {
            1 => Death::Sysrq,
            _ => Death::Nmi,
        },
        dumps: vec![DumpFile::new(MAIN_DUMP, "-l -d 17")],
        warm_up: 8,
        random_ms: 12_000,
        seed: crash,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_flavour_and_every_occupation_is_met() {
        let planned: Vec<Planned> = (1..=44).flat_map(guests).collect();
        assert!(planned.len() >= 150, "{}", planned.len());
        let met: BTreeSet<&str> = planned.iter().map(|p| p.guest.flavour.as_str()).collect();
        for guest in flavours::all() {
            let flavour = guest.flavour.as_str();
            assert!(
                met.contains(flavour) != LEFT_OUT.contains(&flavour),
                "{flavour}"
            );
        }
        let doing: BTreeSet<&str> = planned.iter().map(|p| p.doing).collect();
        assert_eq!(doing.len(), 7);
    }
}

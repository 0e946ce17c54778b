//! A process that a real crash meets: many small VMs, each stopped at another
//! exit or in another state. Brought back, it finds out for itself whether
//! everything is as it was.
//!
//! `tests/lab_exact.rs` runs it in the lab's host, which dies and is booted
//! again: `TINY_STAY=DIR tiny_guest --ignored --exact stay::stays`. It says
//! `DIR/ready` when the host may die, waits for `DIR/go`, and then writes
//! `DIR/report`: a line for each fault, and `DONE` behind them.

use crate::device::{Device, Event};
use crate::machine::{Chips, Machine, handle_pending, run, step};
use crate::odd;
use crate::pieces::PIECES_ROUND;
use crate::programs::Mode;
use crate::state::State;
use crate::{EXITS_ROUND, set_word};
use std::path::Path;
use std::time::Duration;

/// A guest that is stopped at an exit.
struct Stopped {
    what: String,
    machine: Machine,
    device: Device,
    handled: bool,
    wanted: Vec<Event>,
    memory: Vec<u8>,
}

fn start(program: &str, mode: Mode, chips: Chips) -> Machine {
    let machine = Machine::new(mode, &[program], chips);
    set_word(&machine, 0, 4, u32::from(crate::has_hardware_kvm()));
    machine
}

/// A guest stopped at each exit of a round.
fn stopped(program: &str, round: usize, mode: Mode, chips: Chips) -> Vec<Stopped> {
    let make = || start(program, mode, chips);
    let mut machine = make();
    let total = 3 * round;
    let mut reference = Device::default();
    while reference.log.len() < total {
        step(&mut machine.vcpus[0], &mut reference);
    }
    let memory = machine.memory_bytes();
    let at = |stop: usize| {
        let mut machine = make();
        let mut device = Device::default();
        while device.log.len() < stop {
            step(&mut machine.vcpus[0], &mut device);
        }
        assert!(run(&mut machine.vcpus[0]));
        let handled = stop.is_multiple_of(2);
        if handled {
            handle_pending(&mut machine.vcpus[0], &mut device);
        }
        Stopped {
            what: format!("{program}, {mode:?}, stopped at {stop}"),
            machine,
            device,
            handled,
            wanted: reference.log.clone(),
            memory: memory.clone(),
        }
    };
    (round..2 * round).map(at).collect()
}

impl Stopped {
    /// Lets it go on; what is wrong.
    fn go_on(mut self) -> Option<String> {
        let vcpu = &mut self.machine.vcpus[0];
        if !self.handled {
            handle_pending(vcpu, &mut self.device);
        }
        while self.device.log.len() < self.wanted.len() {
            step(vcpu, &mut self.device);
        }
        let got = &self.device.log;
        let first = self.wanted.iter().zip(got).position(|(a, b)| a != b);
        let what = &self.what;
        if let Some(n) = first {
            let (wanted, got) = (&self.wanted[n], &got[n]);
            return Some(format!("{what}: event {n} is {got:?}, not {wanted:?}"));
        }
        (self.machine.memory_bytes() != self.memory).then(|| format!("{what}: memory differs"))
    }
}

#[test]
#[ignore = "waits for a crash: tests/lab_exact.rs"]
fn stays() {
    let Some(dir) = std::env::var_os("TINY_STAY") else {
        eprintln!("\n*** SKIPPED stays: TINY_STAY names no directory ***\n");
        return;
    };
    let dir = Path::new(&dir);
    std::fs::create_dir_all(dir).expect("directory");
    // What a state is, its twin tells: to ask for it changes some.
    let odd: Vec<_> = odd::machines()
        .into_iter()
        .zip(odd::machines())
        .map(|(mut twin, odd)| {
            let mut before = State::of(&mut twin.machine);
            if !odd.asking_changes_it {
                let mut machine = odd.machine;
                before = State::of(&mut machine);
                return (before, odd.name, machine);
            }
            (before, odd.name, odd.machine)
        })
        .collect();
    let mut guests = stopped("exits", EXITS_ROUND, Mode::Long, Chips::Kernel);
    guests.extend(stopped("pieces", PIECES_ROUND, Mode::Long, Chips::Split));
    guests.extend(stopped(
        "pieces",
        PIECES_ROUND,
        Mode::Protected,
        Chips::None,
    ));
    std::fs::write(dir.join("ready"), "").expect("ready");
    while !dir.join("go").exists() {
        std::thread::sleep(Duration::from_millis(300));
    }

    let mut report: Vec<String> = Vec::new();
    for (before, name, mut machine) in odd {
        let after = State::of(&mut machine);
        let differences = before.differences(&after);
        report.extend(differences.iter().map(|d| format!("{name}: {d}")));
    }
    report.extend(guests.into_iter().filter_map(Stopped::go_on));
    report.push("DONE\n".into());
    std::fs::write(dir.join("report"), report.join("\n")).expect("report");
}

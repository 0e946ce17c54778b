//! MMIO that reaches the VMM in pieces, stopped at each of them.
//!
//! What KVM holds of such an access no call tells: here it is taken from what
//! a guest that was never stopped sent and got, and the program is known.

use crate::device::{Device, Event};
use crate::in_flight::each_comes_again_edited;
use crate::kvm_is_here;
use crate::machine::{Chips, Machine, handle_pending, run, step};
use crate::programs::Mode;
use vmrestore::dataset::{Blob, ExitInFlight, MmioPart};
use vmrestore::restore::kvm::KvmError;

/// The accesses of one round of the program, in order, with their pieces.
const ACCESSES: [usize; 16] = [
    2, // mov over the end of a page: write
    2, // and read
    2, // 2 bytes over the end of a page
    2, 2, // add: read, then write
    2, // movdqu: 8, 8
    3, // 8, 2 | 6
    3, // 3 | 8, 5
    2, // the same, read
    3, //
    1, // rep insb: the input
    3, // and where it goes
    2, // cmpsd
    1, 1, // movsd
    0, // (the round's end)
];
pub const PIECES_ROUND: usize = 31;
const ROUND: usize = PIECES_ROUND;

/// First piece and number of pieces of the access that piece `n` belongs to.
fn access(n: usize) -> (usize, usize) {
    let mut first = n / ROUND * ROUND;
    for pieces in ACCESSES {
        if n < first + pieces {
            return (first, pieces);
        }
        first += pieces;
    }
    unreachable!("a round has {ROUND} pieces");
}

/// What KVM held at piece `n` of an uninterrupted guest's log.
fn held(log: &[Event], n: usize) -> Option<(Vec<MmioPart>, Blob)> {
    let (first, pieces) = access(n);
    let mut write: Vec<MmioPart> = Vec::new();
    let mut answered = Vec::new();
    match &log[n] {
        Event::Write { .. } => {
            for piece in &log[n..first + pieces] {
                let Event::Write { address, data } = piece else {
                    panic!("{piece:?} among the pieces of a write");
                };
                let page = |address: u64| address / 4096;
                match write.last_mut() {
                    Some(part) if page(part.address) == page(*address) => {
                        part.data.0.extend(data);
                    }
                    _ => write.push(MmioPart {
                        address: *address,
                        data: Blob(data.clone()),
                    }),
                }
            }
            if write.len() == 1 && write[0].data.0.len() <= 8 {
                write.clear();
            }
        }
        Event::Read { .. } => {
            for piece in &log[first..n] {
                let Event::Read { data, .. } = piece else {
                    panic!("{piece:?} among the pieces of a read");
                };
                answered.extend(data);
            }
        }
        _ => return None,
    }
    Some((write, Blob(answered)))
}

fn every_piece(mode: Mode, chips: Chips) {
    let make = || Machine::new(mode, &["pieces"], chips);
    each_comes_again_edited(ROUND, make, |vm, log, stop| {
        assert_eq!(
            log[ROUND].address() & 0xffff_ffff,
            log[0].address(),
            "a round"
        );
        if let Some(exit) = &mut vm.vcpus[0].exit_in_flight
            && let Some((write, answered)) = held(log, stop)
        {
            exit.mmio_write = write;
            exit.mmio_answered = answered;
        }
    });
}

#[test]
fn every_piece_of_mmio_long_mode() {
    if kvm_is_here("every_piece_of_mmio_long_mode") {
        every_piece(Mode::Long, Chips::Kernel);
    }
}

#[test]
fn every_piece_of_mmio_protected_mode() {
    if kvm_is_here("every_piece_of_mmio_protected_mode") {
        every_piece(Mode::Protected, Chips::None);
    }
}

/// A rest that no instruction makes is refused, not lost.
#[test]
fn an_impossible_rest_is_refused() {
    if !kvm_is_here("an_impossible_rest_is_refused") {
        return;
    }
    let stopped = || {
        let mut device = Device::default();
        let mut machine = Machine::new(Mode::Long, &["pieces"], Chips::None);
        while device.log.is_empty() {
            step(&mut machine.vcpus[0], &mut device);
        }
        assert!(run(&mut machine.vcpus[0]));
        handle_pending(&mut machine.vcpus[0], &mut device);
        machine
    };
    type Edit = fn(&mut ExitInFlight);
    let edits: [(&str, Edit); 3] = [
        ("begins elsewhere", |exit| {
            exit.mmio_write[0].address -= 1;
            exit.mmio_write[0].data.0.insert(0, 0);
        }),
        ("SGDT's length", |exit| {
            exit.mmio_write[0].data.0 = vec![1; 9];
        }),
        ("lost on a stack", |exit| exit.refused = Some("why".into())),
    ];
    for (name, edit) in edits {
        let refused = stopped().crash_and_restore_edited(|vm, _| {
            let page = vm.vcpus[0].run_pages[0].0.clone();
            // phys_addr and data, 32 bytes into kvm_run.
            let address = u64::from_le_bytes(page[32..40].try_into().expect("8 bytes"));
            let exit = vm.vcpus[0].exit_in_flight.as_mut().expect("an exit");
            let part = |address, data: &[u8]| MmioPart {
                address,
                data: Blob(data.to_vec()),
            };
            exit.mmio_write = vec![part(address, &page[40..41]), part(address + 1, &[0; 3])];
            edit(exit);
        });
        let what = refused.map(|_| ());
        assert!(
            matches!(what, Err(KvmError::Unsupported { .. })),
            "{name}: {what:?}"
        );
    }
}

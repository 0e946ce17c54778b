//! State that was set is there after a restore: KVM_GET_* of everything, before
//! and after.

use crate::kvm_is_here;
use crate::odd::{self, Odd};
use crate::state::State;

#[test]
fn everything_reads_back() {
    if !kvm_is_here("everything_reads_back") {
        return;
    }
    let mut wrong = Vec::new();
    for Odd {
        name, mut machine, ..
    } in odd::machines()
    {
        let before = State::of(&mut machine);
        let mut machine = match machine.crash_and_restore_edited(|_, _| {}) {
            Ok(machine) => machine,
            Err(error) => {
                wrong.push(format!("{name}: {}", crate::machine::chain(&error)));
                continue;
            }
        };
        let after = State::of(&mut machine);
        let differences = before.differences(&after);
        wrong.extend(differences.iter().map(|d| format!("{name}: {d}")));
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

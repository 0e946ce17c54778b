//! Every MSR that KVM lists is accounted for in docs/kvm-state.md.

use crate::kvm_is_here;
use std::ops::RangeInclusive;

/// The MSRs of the docs' table.
fn documented() -> Vec<RangeInclusive<u32>> {
    let docs = include_str!("../../docs/kvm-state.md");
    let (_, table) = docs.split_once("## MSRs").expect("a section on MSRs");
    let number = |text: &str| {
        let digits = text.trim().strip_prefix("0x").expect("an MSR's number");
        u32::from_str_radix(digits, 16).expect("an MSR's number")
    };
    table
        .lines()
        .filter_map(|line| line.strip_prefix("| 0x"))
        .flat_map(|line| {
            let (cell, rest) = line.split_once('|').expect("a cell");
            assert!(rest.len() > 10, "nothing is said of 0x{cell}");
            let cell = format!("0x{cell}");
            let of = cell.split(',').map(|part| match part.split_once('-') {
                Some((first, last)) => number(first)..=number(last),
                None => number(part)..=number(part),
            });
            of.collect::<Vec<_>>()
        })
        .collect()
}

#[test]
fn every_msr_that_kvm_lists_is_accounted_for() {
    if !kvm_is_here("every_msr_that_kvm_lists_is_accounted_for") {
        return;
    }
    let kvm = kvm_ioctls::Kvm::new().expect("/dev/kvm");
    let state = kvm.get_msr_index_list().expect("MSR list");
    let features = kvm.get_msr_feature_index_list().expect("feature MSRs");
    let documented = documented();
    let missing: Vec<String> = state
        .as_slice()
        .iter()
        .chain(features.as_slice())
        .filter(|index| !documented.iter().any(|range| range.contains(index)))
        .map(|index| format!("{index:#x}"))
        .collect();
    assert!(
        missing.is_empty(),
        "docs/kvm-state.md has no row for {missing:?}"
    );
    eprintln!(
        "{} MSRs of state and {} of features, all accounted for",
        state.as_slice().len(),
        features.as_slice().len()
    );
}

//! Guests that differ in their VMM's version, their firmware and their
//! platform's clocks.

use super::{microvm, pc, q35};
use crate::guest::{Guest, NEWER_QEMU};

/// See the names.
pub(super) fn flavours() -> Vec<Guest> {
    vec![
        newer("qemu10-microvm", microvm()),
        newer("qemu10-pc", pc()),
        newer("qemu10-q35", q35()),
        // Firmware in two flash devices, of which the second can be written.
        Guest {
            flavour: "pflash".into(),
            prepare: "truncate -s 256K /data/{name}.vars".into(),
            options:
                "-drive if=pflash,format=raw,readonly=on,file=/usr/share/seabios/bios-256k.bin \
                      -drive if=pflash,format=raw,file=/data/{name}.vars"
                    .into(),
            ..q35()
        },
        // UEFI, its variables in a file of its own. With an APIC in KVM its
        // writes of CR8 would end the emulated host (docs/lab.md).
        Guest {
            flavour: "ovmf".into(),
            prepare: "cp /usr/share/OVMF/OVMF_VARS_4M.fd /data/{name}.vars".into(),
            board_options: ",kernel-irqchip=off".into(),
            options: "-cpu host,-kvm-asyncpf-int \
                      -drive if=pflash,format=raw,readonly=on,file=/usr/share/OVMF/OVMF_CODE_4M.fd \
                      -drive if=pflash,format=raw,file=/data/{name}.vars"
                .into(),
            cpus: 1,
            memory_mib: 192,
            ..q35()
        },
        // Time from the HPET, without KVM's clock.
        Guest {
            flavour: "hpet".into(),
            board_options: ",hpet=on".into(),
            append: "clocksource=hpet no-kvmclock".into(),
            ..q35()
        },
        // Interrupts from PIC and PIT alone.
        Guest {
            flavour: "pic".into(),
            cpus: 1,
            append: "noapic nolapic no-kvmclock".into(),
            ..pc()
        },
        // IOAPIC and PIC in the VMM, the local APICs in KVM.
        Guest {
            flavour: "split-irqchip".into(),
            board_options: ",kernel-irqchip=split".into(),
            ..q35()
        },
        // All of them in the VMM.
        Guest {
            flavour: "no-irqchip".into(),
            board_options: ",kernel-irqchip=off".into(),
            // KVM offers that, and refuses it without an APIC of its own.
            options: "-cpu host,-kvm-asyncpf-int".into(),
            cpus: 1,
            ..pc()
        },
    ]
}

/// The same under Debian 13's QEMU.
fn newer(flavour: &str, guest: Guest) -> Guest {
    Guest {
        flavour: flavour.into(),
        vmm: NEWER_QEMU.into(),
        ..guest
    }
}

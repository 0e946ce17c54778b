//! Interrupt controllers and the timer that are in the kernel: PIC, IOAPIC, PIT.

use super::GuestError;
use super::field::{flag, narrow, u_or_0};
use crate::dataset::{Fidelity, IoApic, Irqchip, Pic, Pit, PitChannel};
use crate::kernel::Object;

/// `arch.irqchip_mode` of a `struct kvm`, and what belongs to it.
pub(super) fn irqchip(vm: &Object<'_>) -> Result<Irqchip, GuestError> {
    let mode = vm.u("arch.irqchip_mode")?;
    let value = |name: &str, default: u64| {
        vm.kernel()
            .enum_value("kvm_irqchip_mode", name)
            .and_then(|v| u64::try_from(v).ok())
            .unwrap_or(default)
    };
    if mode == value("KVM_IRQCHIP_NONE", 0) {
        Ok(Irqchip::None)
    } else if mode == value("KVM_IRQCHIP_SPLIT", 2) {
        Ok(Irqchip::Split {
            ioapic_pins: narrow(vm, "arch.nr_reserved_ioapic_pins")?,
        })
    } else if mode == value("KVM_IRQCHIP_KERNEL", 1) {
        let pic = vm.follow("arch.vpic")?;
        Ok(Irqchip::Kernel {
            pics: Box::new([one_pic(&pic, 0)?, one_pic(&pic, 1)?]),
            ioapic: Box::new(ioapic(&vm.follow("arch.vioapic")?)?),
        })
    } else {
        Err(GuestError::Damaged {
            what: "kvm_arch.irqchip_mode",
            addr: vm.addr(),
            detail: format!("{mode} is no mode"),
        })
    }
}

/// `struct kvm_pic_state`, in the order of its bytes. Linux arch/x86/include/uapi/asm/kvm.h.
const PIC_BYTES: [&str; 16] = [
    "last_irr",
    "irr",
    "imr",
    "isr",
    "priority_add",
    "irq_base",
    "read_reg_select",
    "poll",
    "special_mask",
    "init_state",
    "auto_eoi",
    "rotate_on_auto_eoi",
    "special_fully_nested_mode",
    "init4",
    "elcr",
    "elcr_mask",
];

fn one_pic(pic: &Object<'_>, number: u32) -> Result<Pic, GuestError> {
    let state = pic.get(&format!("pics[{number}]"))?;
    let mut bytes = [0; 16];
    for (byte, name) in bytes.iter_mut().zip(PIC_BYTES) {
        *byte = narrow(&state, name)?;
    }
    Ok(Pic { bytes })
}

fn ioapic(chip: &Object<'_>) -> Result<IoApic, GuestError> {
    let mut redirection = [0; 24];
    for (number, entry) in redirection.iter_mut().enumerate() {
        *entry = chip.u(&format!("redirtbl[{number}].bits"))?;
    }
    let irr: u32 = narrow(chip, "irr")?;
    // kvm_get_ioapic: lines whose interrupt was delivered are not requested any more.
    let delivered = u32::try_from(u_or_0(chip, "irr_delivered")?).unwrap_or_default();
    Ok(IoApic {
        base_address: chip.u("base_address")?,
        ioregsel: narrow(chip, "ioregsel")?,
        id: narrow(chip, "id")?,
        irr: irr & !delivered,
        redirection,
    })
}

/// The i8254, when KVM has it.
pub(super) fn pit(
    vm: &Object<'_>,
    subject: &str,
    fidelity: &mut Vec<Fidelity>,
) -> Result<Option<Pit>, GuestError> {
    const SPEAKER_DUMMY: u32 = 1;
    if !vm.has("arch.vpit") {
        return Ok(None);
    }
    let Some(pit) = vm.follow_opt("arch.vpit")? else {
        return Ok(None);
    };
    let state = pit.get("pit_state")?;
    let mut channels = [PitChannel::default(); 3];
    for (number, channel) in channels.iter_mut().enumerate() {
        *channel = pit_channel(&state.get(&format!("channels[{number}]"))?)?;
    }
    if flag(&state, "is_periodic")? {
        fidelity.push(Fidelity::reconstructed(
            subject,
            "i8254 timer",
            "it counts again from the start of a period",
        ));
    }
    let pending = state.u("pending.counter")?;
    if pending != 0 {
        fidelity.push(Fidelity::lost(
            subject,
            format!("{pending} ticks of the i8254"),
            "they had not been delivered, and KVM cannot be told of them",
        ));
    }
    // The speaker's port has operations only where it was asked for.
    let speaker = pit.ptr("speaker_dev.ops")? != 0;
    Ok(Some(Pit {
        channels,
        flags: narrow(&state, "flags")?,
        reinject: state.u("reinject.counter")? != 0,
        create_flags: if speaker { SPEAKER_DUMMY } else { 0 },
    }))
}

fn pit_channel(channel: &Object<'_>) -> Result<PitChannel, GuestError> {
    Ok(PitChannel {
        count: narrow(channel, "count")?,
        latched_count: narrow(channel, "latched_count")?,
        count_latched: narrow(channel, "count_latched")?,
        status_latched: narrow(channel, "status_latched")?,
        status: narrow(channel, "status")?,
        read_state: narrow(channel, "read_state")?,
        write_state: narrow(channel, "write_state")?,
        write_latch: narrow(channel, "write_latch")?,
        rw_mode: narrow(channel, "rw_mode")?,
        mode: narrow(channel, "mode")?,
        bcd: narrow(channel, "bcd")?,
        gate: narrow(channel, "gate")?,
        count_load_time: channel.i("count_load_time")?,
    })
}

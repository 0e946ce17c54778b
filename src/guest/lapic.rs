//! The local APIC of a vCPU.

use super::GuestError;
use super::clock::CrashClock;
use super::exit_window::Window;
use super::field::{narrow, u_or_0, u32_at};
use super::user_memory::UserMemory;
use super::vmcb::Svm;
use crate::dataset::{Fidelity, Lapic};
use crate::kernel::Object;

// Offsets in the register page. Intel SDM volume 3, table "Local APIC Register Address Map".
const ID: usize = 0x20;
const TASK_PRIORITY: usize = 0x80;
const IN_SERVICE: usize = 0x100;
const REQUESTED: usize = 0x200;
const ICR: usize = 0x300;
const ICR_HIGH: usize = 0x310;
const LVT_TIMER: usize = 0x320;
const TIMER_INITIAL: usize = 0x380;
const TIMER_CURRENT: usize = 0x390;
/// What `struct kvm_lapic_state` holds.
const STATE: usize = 1024;

/// A local APIC, and the part of its timer that is an MSR.
pub(super) struct LapicState {
    pub lapic: Lapic,
    /// TPR, bits 7–4: CR8.
    pub cr8: u64,
    /// MSR IA32_TSC_DEADLINE; `None` where the timer is in another mode.
    pub tsc_deadline: Option<u64>,
    /// Bit 0: an INIT waits to be taken; bit 1: a start-up IPI.
    pub pending_events: u64,
    pub sipi_vector: u32,
}

/// What has to be known beside the APIC itself.
pub(super) struct Around<'a, 'k> {
    /// `struct kvm`.
    pub vm: &'a Object<'k>,
    /// `struct kvm_vcpu_arch`.
    pub arch: &'a Object<'k>,
    pub svm: &'a Svm<'k>,
    pub window: Window,
    pub runs_own_guest: bool,
    pub clock: &'a CrashClock,
    pub memory: &'a UserMemory<'k>,
    pub subject: &'a str,
}

/// The LAPIC of a vCPU, as KVM_GET_LAPIC would give it; `None` when the VMM has it.
pub(super) fn lapic(
    around: &Around<'_, '_>,
    fidelity: &mut Vec<Fidelity>,
) -> Result<Option<LapicState>, GuestError> {
    let Some(apic) = around.arch.follow_opt("apic")? else {
        return Ok(None);
    };
    let page = apic.ptr("regs")?;
    let mut regs = vec![0; STATE];
    apic.kernel()
        .read(page, &mut regs)
        .map_err(GuestError::reading("the register page of a LAPIC", page))?;

    if around.window == Window::AfterExit && !around.runs_own_guest {
        take_over_tpr(around.svm, &mut regs)?;
    }
    sync_from_guest(around, &apic, &mut regs, fidelity)?;
    let tsc_deadline = timer(around, &apic, &mut regs)?;
    x2apic_format(around, &mut regs)?;

    Ok(Some(LapicState {
        cr8: u64::from(u32_at(&regs, TASK_PRIORITY) >> 4 & 15),
        lapic: Lapic {
            regs: crate::dataset::Blob(regs),
        },
        tsc_deadline,
        pending_events: u_or_0(&apic, "pending_events")?,
        sipi_vector: narrow(&apic, "sipi_vector")?,
    }))
}

/// `sync_cr8_to_lapic`, which the crash forestalled: a guest that writes CR8 without an exit has
/// its TPR in the VMCB's V_TPR.
fn take_over_tpr(svm: &Svm<'_>, regs: &mut [u8]) -> Result<(), GuestError> {
    const CR8: u32 = 8;
    if !svm.intercepts_cr_write(CR8)? {
        let tpr = (svm.current.u("control.int_ctl")? & 15) as u32;
        set(regs, TASK_PRIORITY, tpr << 4);
    }
    Ok(())
}

/// `kvm_lapic_sync_from_vapic`: what the guest may have told KVM through memory instead of by an
/// exit. KVM asks after every exit; `apic_attention` says whether it has yet to.
fn sync_from_guest(
    around: &Around<'_, '_>,
    apic: &Object<'_>,
    regs: &mut [u8],
    fidelity: &mut Vec<Fidelity>,
) -> Result<(), GuestError> {
    const CHECK_VAPIC: u64 = 1;
    const PV_EOI_PENDING: u64 = 2;
    let attention = around.arch.u("apic_attention")?;
    if attention & PV_EOI_PENDING != 0 {
        // KVM had set a flag in the guest's memory: "clear this instead of writing EOI". Nothing
        // can tell a new KVM that it is set, so the interrupt is ended here in either case. If the
        // guest has yet to clear the flag, it will, and will write no EOI: that balances.
        let flag = around.arch.u("pv_eoi.data.hva")?;
        let done = match around.memory.byte(flag) {
            Ok(byte) => byte & 1 == 0,
            Err(error) => {
                tracing::debug!("{}: EOI flag at {flag:#x}: {error}", around.subject);
                true
            }
        };
        if let Some(vector) = highest(regs, IN_SERVICE) {
            clear_bit(regs, IN_SERVICE, vector);
            if !done {
                fidelity.push(Fidelity::reconstructed(
                    around.subject,
                    format!("end of interrupt {vector:#x}"),
                    "the guest was in its handler and would have ended it by a flag in memory, \
                     which a new KVM does not know of; it counts as ended",
                ));
            }
        }
    }
    if attention & CHECK_VAPIC != 0
        && let Ok(tpr) = around.memory.u32(apic.u("vapic_cache.hva")?)
    {
        set(regs, TASK_PRIORITY, tpr & 0xff);
    }
    Ok(())
}

/// The timer: its current count at the crash, its expiries that KVM had not delivered, and the
/// deadline MSR.
fn timer(
    around: &Around<'_, '_>,
    apic: &Object<'_>,
    regs: &mut [u8],
) -> Result<Option<u64>, GuestError> {
    const MASKED: u32 = 1 << 16;
    const MODE: u32 = 3 << 17;
    const MODE_ONESHOT: u32 = 0;
    const MODE_TSC_DEADLINE: u32 = 2 << 17;
    let lvt = u32_at(regs, LVT_TIMER);
    let timer = apic.get("lapic_timer")?;
    let mut deadline = timer.u("tscdeadline")?;
    let mut running = true;

    // kvm_inject_apic_timer_irqs
    if timer.u("pending.counter")? != 0 {
        if lvt & MASKED == 0 && lvt & 0xff >= 16 {
            set_bit(regs, REQUESTED, (lvt & 0xff) as u8);
        }
        deadline = 0;
        running = lvt & MODE != MODE_ONESHOT;
    }
    let count = if running {
        current_count(&CountDown {
            initial: u32_at(regs, TIMER_INITIAL),
            period_ns: timer.u("period")?,
            expires_ns: timer.i("target_expiration")?,
            now_ns: around.clock.monotonic_ns,
            // KVM_CAP_X86_APIC_BUS_CYCLES_NS: since 6fef518594bc ("KVM: x86: Add a capability to
            // configure bus frequency for APIC timer") (in v6.11); 1 ns before.
            tick_ns: u_or_0(around.vm, "arch.apic_bus_cycle_ns")?
                .max(1)
                .saturating_mul(apic.u("divide_count")?.max(1)),
        })
    } else {
        0
    };
    set(regs, TIMER_CURRENT, count);
    Ok((lvt & MODE == MODE_TSC_DEADLINE).then_some(deadline))
}

struct CountDown {
    initial: u32,
    period_ns: u64,
    expires_ns: i64,
    now_ns: i64,
    tick_ns: u64,
}

/// `apic_get_tmcct`.
fn current_count(timer: &CountDown) -> u32 {
    if timer.initial == 0 || timer.period_ns == 0 {
        return 0;
    }
    let remaining = u64::try_from(timer.expires_ns.saturating_sub(timer.now_ns)).unwrap_or(0);
    let count = remaining % timer.period_ns / timer.tick_ns;
    u32::try_from(count).unwrap_or(u32::MAX)
}

/// `kvm_apic_state_fixup`: in x2APIC mode the page has another form inside of KVM.
fn x2apic_format(around: &Around<'_, '_>, regs: &mut [u8]) -> Result<(), GuestError> {
    /// EN and EXTD of IA32_APIC_BASE.
    const X2APIC: u64 = 0xc00;
    if around.arch.u("apic_base")? & X2APIC != X2APIC {
        return Ok(());
    }
    if u_or_0(around.vm, "arch.x2apic_format")? == 0 {
        let id = u32_at(regs, ID);
        set(regs, ID, id << 24);
    }
    // The ICR is one word of 64 bits inside of KVM, unless the vendor's hardware splits it, since
    // 73b42dc69be8 ("KVM: x86: Re-split x2APIC ICR into ICR+ICR2 for AMD (x2AVIC)") (in v6.12).
    let split = super::field::kvm_symbol(around.vm.kernel(), "kvm_x86_ops")
        .and_then(|ops| super::field::kvm_object(around.vm.kernel(), "kvm_x86_ops", ops).ok())
        .and_then(|ops| ops.u("x2apic_icr_is_split").ok())
        .is_some_and(|split| split != 0);
    let high = u32_at(regs, ICR + 4);
    if !split && high != 0 {
        set(regs, ICR_HIGH, high);
    }
    Ok(())
}

fn set(regs: &mut [u8], at: usize, value: u32) {
    if let Some(place) = regs.get_mut(at..at + 4) {
        place.copy_from_slice(&value.to_le_bytes());
    }
}

/// Where the bit of `vector` stands in a set of 256: eight words, each 16 bytes from the last.
fn bit_of(base: usize, vector: u8) -> (usize, u32) {
    (
        base + usize::from(vector / 32) * 16,
        1 << u32::from(vector % 32),
    )
}

fn set_bit(regs: &mut [u8], base: usize, vector: u8) {
    let (at, bit) = bit_of(base, vector);
    let word = u32_at(regs, at) | bit;
    set(regs, at, word);
}

fn clear_bit(regs: &mut [u8], base: usize, vector: u8) {
    let (at, bit) = bit_of(base, vector);
    let word = u32_at(regs, at) & !bit;
    set(regs, at, word);
}

fn highest(regs: &[u8], base: usize) -> Option<u8> {
    (0..=u8::MAX).rev().find(|vector| {
        let (at, bit) = bit_of(base, *vector);
        u32_at(regs, at) & bit != 0
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timer_counts_down_to_its_expiry() {
        let timer = CountDown {
            initial: 1000,
            period_ns: 16_000,
            expires_ns: 50_000,
            now_ns: 42_000,
            tick_ns: 16,
        };
        assert_eq!(current_count(&timer), 500);
        let late = CountDown {
            now_ns: 60_000,
            ..timer
        };
        assert_eq!(current_count(&late), 0);
        let stopped = CountDown { initial: 0, ..late };
        assert_eq!(current_count(&stopped), 0);
    }

    #[test]
    fn vectors_in_the_page() {
        let mut regs = vec![0; STATE];
        assert_eq!(highest(&regs, IN_SERVICE), None);
        set_bit(&mut regs, IN_SERVICE, 0x31);
        set_bit(&mut regs, IN_SERVICE, 0xec);
        // Vector 0xec: word 7, at 0x170, bit 12. SDM volume 3, "ISR, IRR, and TMR registers".
        assert_eq!(regs[0x171], 0x10);
        assert_eq!(highest(&regs, IN_SERVICE), Some(0xec));
        clear_bit(&mut regs, IN_SERVICE, 0xec);
        assert_eq!(highest(&regs, IN_SERVICE), Some(0x31));
        assert_eq!(regs[0x171], 0);
    }
}

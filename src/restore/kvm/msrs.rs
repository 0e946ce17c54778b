//! Model-specific registers, and the time-stamp counter among them.

use super::calls::Calls;
use super::error::KvmError;
use super::{ioctls, vcpu_args};
use crate::dataset::{Fidelity, MsrEntry, Vcpu};
use crate::restore::Errno;
use crate::sys::kvm_args::bytes_of;
use kvm_bindings as kvm;

const TSC: u32 = 0x10;
const TSC_DEADLINE: u32 = 0x6e0;

/// KVM takes fewer than 256 at once (MAX_IO_MSRS, Linux arch/x86/kvm/x86.c).
const BATCH: usize = 128;

/// MSRs that say what the CPU is, rather than hold state. KVM fixes some of
/// them at the first KVM_RUN, and nested state depends on them.
fn is_feature(index: u32) -> bool {
    matches!(
        index,
        0x3a            // IA32_FEATURE_CONTROL
        | 0x8b          // microcode revision
        | 0xce          // PLATFORM_INFO
        | 0x10a         // IA32_ARCH_CAPABILITIES
        | 0x345         // IA32_PERF_CAPABILITIES
        | 0x480
            ..=0x493 // IA32_VMX_*
        | 0xc001_1029 // AMD DE_CFG
    )
}

/// MSRs whose loss a running guest bears: it read them when it started.
fn only_describes(index: u32) -> bool {
    is_feature(index) && index != 0x3a
}

/// Those of [`is_feature`].
pub(super) fn set_features(
    calls: &mut Calls,
    fd: i32,
    vcpu: &Vcpu,
    notes: &mut Vec<Fidelity>,
) -> Result<(), KvmError> {
    set_those(calls, fd, vcpu, notes, is_feature)
}

/// All the others, but the TSC and its deadline.
pub(super) fn set(
    calls: &mut Calls,
    fd: i32,
    vcpu: &Vcpu,
    notes: &mut Vec<Fidelity>,
) -> Result<(), KvmError> {
    set_those(calls, fd, vcpu, notes, |index| {
        !is_feature(index) && !matches!(index, TSC | TSC_DEADLINE)
    })
}

/// The TSC deadline; the LAPIC and the TSC have been set.
pub(super) fn set_deadline(
    calls: &mut Calls,
    fd: i32,
    vcpu: &Vcpu,
    notes: &mut Vec<Fidelity>,
) -> Result<(), KvmError> {
    set_those(calls, fd, vcpu, notes, |index| index == TSC_DEADLINE)
}

fn set_those(
    calls: &mut Calls,
    fd: i32,
    vcpu: &Vcpu,
    notes: &mut Vec<Fidelity>,
    which: impl Fn(u32) -> bool,
) -> Result<(), KvmError> {
    let wanted: Vec<MsrEntry> = vcpu
        .msrs
        .iter()
        .filter(|m| which(m.index))
        .copied()
        .collect();
    let mut rest = &wanted[..];
    while !rest.is_empty() {
        let batch = &rest[..rest.len().min(BATCH)];
        let taken = set_batch(calls, fd, batch)?;
        rest = &rest[taken..];
        // KVM stops at the first that it refuses, and says how many it took.
        if taken < batch.len() {
            let refused = batch[taken];
            rest = &rest[1..];
            notes.push(forgive(&calls.subject, refused)?);
        }
    }
    Ok(())
}

/// How many of `batch` were taken.
fn set_batch(calls: &mut Calls, fd: i32, batch: &[MsrEntry]) -> Result<usize, KvmError> {
    let taken = calls.set_bytes(fd, ioctls::SET_MSRS, &vcpu_args::msrs(batch))?;
    Ok(usize::try_from(taken).unwrap_or(0).min(batch.len()))
}

/// What follows from an MSR that was refused.
fn forgive(subject: &str, msr: MsrEntry) -> Result<Fidelity, KvmError> {
    let MsrEntry { index, value } = msr;
    let what = format!("MSR {index:#x} = {value:#x}");
    if value == 0 {
        let how = "this host has no such MSR; the guest had nothing in it";
        return Ok(Fidelity::reconstructed(subject, what, how));
    }
    if only_describes(index) {
        let why = "this host refuses it (other microcode or kernel?); the guest read it at start";
        return Ok(Fidelity::lost(subject, what, why));
    }
    Err(KvmError::MsrRefused {
        subject: subject.into(),
        index,
        value,
    })
}

/// Reads `indices`; `None` for one that cannot be read.
pub(super) fn read(
    calls: &mut Calls,
    fd: i32,
    indices: &[u32],
) -> Result<Vec<Option<u64>>, KvmError> {
    let mut out = Vec::with_capacity(indices.len());
    while out.len() < indices.len() {
        let batch: Vec<MsrEntry> = indices[out.len()..]
            .iter()
            .take(BATCH)
            .map(|&index| MsrEntry { index, value: 0 })
            .collect();
        let mut bytes = vcpu_args::msrs(&batch);
        let read = calls.bytes(fd, ioctls::GET_MSRS, &mut bytes)?;
        let read = usize::try_from(read).unwrap_or(0).min(batch.len());
        for entry in bytes[8..].chunks_exact(16).take(read) {
            out.push(entry[8..].try_into().ok().map(u64::from_le_bytes));
        }
        if read < batch.len() {
            out.push(None);
        }
    }
    Ok(out)
}

/// The guest's TSC, set so that its vCPUs' counters keep their distance.
///
/// The first vCPU's is written as an MSR; the others get its *offset* plus the
/// difference of their values at the crash. Values written one by one would
/// drift apart by the time between the writes, unless KVM's guess that they
/// belong together (within one second) comes true.
#[derive(Default)]
pub(super) struct CommonTsc {
    /// Value and offset of the first vCPU.
    first: Option<(u64, u64)>,
}

/// How far the TSC may have run between writing and reading it back. Seconds.
const SLACK_S: u64 = 5;

impl CommonTsc {
    /// Sets one vCPU's.
    pub fn set(
        &mut self,
        calls: &mut Calls,
        fd: i32,
        vcpu: &Vcpu,
        notes: &mut Vec<Fidelity>,
    ) -> Result<(), KvmError> {
        let Some(&wanted) = vcpu.msrs.iter().find(|m| m.index == TSC) else {
            return Ok(());
        };
        if let Some((value, offset)) = self.first {
            let offset = offset.wrapping_add(wanted.value.wrapping_sub(value));
            if set_offset(calls, fd, offset)? {
                return counts_from(calls, fd, vcpu, wanted.value, notes);
            }
        }
        if set_batch(calls, fd, &[wanted])? != 1 {
            return forgive(&calls.subject, wanted).map(|note| notes.push(note));
        }
        // What it ran since is taken off its offset. That also mends what KVM
        // does with a value that is less than a second from a new vCPU's own:
        // it takes it for an attempt to synchronise, and ignores it (until
        // commit bf328e22e472, "KVM: x86: Don't sync user-written TSC against
        // startup values", in v6.7).
        let now = read(calls, fd, &[TSC])?.first().copied().flatten();
        let Some(ran) = now.map(|now| now.wrapping_sub(wanted.value)) else {
            return Ok(());
        };
        if let Some(offset) = offset(calls, fd)? {
            let offset = offset.wrapping_sub(ran);
            if set_offset(calls, fd, offset)? {
                self.first = Some((wanted.value, offset));
            }
        }
        counts_from(calls, fd, vcpu, wanted.value, notes)
    }
}

/// Says so if the TSC does not count on from where it was set. (A KVM that
/// does not use the CPU's virtualization cannot give a guest another TSC than
/// the host's: PVM takes an offset, and nothing comes of it.)
fn counts_from(
    calls: &mut Calls,
    fd: i32,
    vcpu: &Vcpu,
    wanted: u64,
    notes: &mut Vec<Fidelity>,
) -> Result<(), KvmError> {
    let slack = u64::from(vcpu.tsc_khz.max(1_000_000)) * 1000 * SLACK_S;
    let now = read(calls, fd, &[TSC])?.first().copied().flatten();
    if let Some(now) = now.filter(|now| now.wrapping_sub(wanted) > slack) {
        notes.push(Fidelity::lost(
            &calls.subject,
            "TSC",
            format!("it was {wanted:#x}, and KVM counts on from {now:#x} instead"),
        ));
    }
    Ok(())
}

/// Where in the scratch memory an attribute's value is; the argument itself
/// lies at its start.
const VALUE_AT: u64 = 256;

/// KVM_VCPU_TSC_OFFSET; `None` where KVM has no such attribute (before
/// commit 828ca89628bf, in v5.16).
fn offset(calls: &mut Calls, fd: i32) -> Result<Option<u64>, KvmError> {
    let (at, attr) = tsc_offset_attr(calls);
    let mut bytes = bytes_of(&attr).to_vec();
    match calls.try_bytes(fd, ioctls::GET_DEVICE_ATTR, &mut bytes) {
        Ok(_) => {}
        Err(Errno(libc::ENXIO | libc::ENOTTY | libc::EINVAL)) => return Ok(None),
        Err(errno) => return Err(calls.failed("KVM_GET_DEVICE_ATTR(TSC_OFFSET)", errno)),
    }
    let mut value = [0; 8];
    calls
        .sys
        .read(at, &mut value)
        .map_err(|errno| calls.failed("KVM_GET_DEVICE_ATTR(TSC_OFFSET)", errno))?;
    Ok(Some(u64::from_le_bytes(value)))
}

/// Whether it could be set.
fn set_offset(calls: &mut Calls, fd: i32, offset: u64) -> Result<bool, KvmError> {
    let (at, attr) = tsc_offset_attr(calls);
    let mut bytes = bytes_of(&attr).to_vec();
    let result = calls
        .sys
        .write(at, &offset.to_le_bytes())
        .and_then(|()| calls.try_bytes(fd, ioctls::SET_DEVICE_ATTR, &mut bytes));
    match result {
        Ok(_) => Ok(true),
        Err(Errno(libc::ENXIO | libc::ENOTTY | libc::EINVAL)) => Ok(false),
        Err(errno) => Err(calls.failed("KVM_SET_DEVICE_ATTR(TSC_OFFSET)", errno)),
    }
}

fn tsc_offset_attr(calls: &Calls) -> (u64, kvm::kvm_device_attr) {
    let at = calls.sys.scratch().0 + VALUE_AT;
    let attr = kvm::kvm_device_attr {
        group: kvm::KVM_VCPU_TSC_CTRL,
        attr: u64::from(kvm::KVM_VCPU_TSC_OFFSET),
        addr: at,
        ..Default::default()
    };
    (at, attr)
}

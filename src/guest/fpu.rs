//! FPU, SSE and AVX registers of a vCPU: in memory, or in the CPU that it was on.

use super::GuestError;
use super::field::{narrow, u_or_0};
use super::vcpu::{Found, Reader};
use crate::dataset::{Blob, Fidelity};
use crate::kernel::{Object, XsaveLayout};
use crate::task::FpuFound;

/// XCR0's bit for the protection-key rights.
const PKRU_COMPONENT: u64 = 1 << 9;

impl Reader<'_, '_> {
    /// The FPU, and whether its registers were in the CPU and are lost.
    pub(super) fn fpu(
        &self,
        arch: &Object<'_>,
        found: &Found<'_>,
        subject: &str,
        fidelity: &mut Vec<Fidelity>,
    ) -> Result<(Blob, bool), GuestError> {
        /// KVM_GET_XSAVE's area is never shorter.
        const LEAST: usize = 4096;
        /// AMX's has 11 KiB.
        const MOST: u64 = 1 << 16;
        const WHAT: &str = "FPU, SSE and AVX registers";
        let fpstate = arch.follow("guest_fpu.fpstate")?;
        let size = fpstate.u("size")?;
        if size > MOST {
            return Err(GuestError::Damaged {
                what: "fpstate.size",
                addr: fpstate.addr(),
                detail: format!("{size} bytes"),
            });
        }
        let mut area = fpstate.get("regs")?.read_bytes(size)?;
        let place = match &found.thread {
            Some(thread) if thread.works_on(fpstate.addr())? => thread.find_fpu()?,
            _ => FpuFound::InMemory,
        };
        match &place {
            FpuFound::InMemory => {}
            FpuFound::Kept(state) => {
                if let Some(kept) = &state.fpu {
                    area.clone_from(kept);
                }
                fidelity.push(Fidelity::exact(
                    subject,
                    WHAT,
                    format!("they were in the CPU; from {}", state.source),
                ));
            }
            FpuFound::Lost(why) => fidelity.push(Fidelity::lost(
                subject,
                WHAT,
                format!("{why}; these are the last that were saved"),
            )),
        }
        let default = XsaveLayout::default();
        let layout = self.layout.unwrap_or(&default);
        // Components that the guest cannot turn on hold the host's initial
        // state, and KVM_SET_XSAVE refuses them. Seen with MPX, which SVM never
        // gives to a guest, and whose BNDCSR bit TCG sets in every area.
        const LEGACY: u64 = 3;
        let mut features = fpstate.u("user_xfeatures")?;
        if arch.has("guest_supported_xcr0") {
            features &= arch.u("guest_supported_xcr0")? | LEGACY;
        }
        let mut standard = layout.to_standard(&area, features);
        let pkru = self.pkru(arch, &place)?;
        // In the area that a CPU leaves, it is the host's.
        if pkru != 0 || features & PKRU_COMPONENT != 0 && matches!(place, FpuFound::Kept(_)) {
            layout.set_pkru(&mut standard, pkru);
        }
        let wanted = LEAST.max(narrow(arch, "guest_fpu.uabi_size").unwrap_or(LEAST));
        if standard.len() < wanted && wanted as u64 <= MOST {
            standard.resize(wanted, 0);
        }
        Ok((Blob(standard), matches!(place, FpuFound::Lost(_))))
    }

    /// The guest's protection-key rights: what KVM last took over from the CPU, or what the CPU still
    /// had. KVM exchanges them together with XCR0; since it does so outside of `svm_vcpu_run` (v6.19)
    /// that has not happened yet when the stop NMI is taken. `kvm_load_host_xsave_state`.
    fn pkru(&self, arch: &Object<'_>, place: &FpuFound) -> Result<u32, GuestError> {
        let saved = u32::try_from(u_or_0(arch, "pkru")?).unwrap_or_default();
        let FpuFound::Kept(state) = place else {
            return Ok(saved);
        };
        let host = u32::try_from(u_or_0(arch, "host_pkru")?).unwrap_or_default();
        Ok(match state.pkru {
            // The exchange has been made, or both are the same.
            Some(live) if live == host => saved,
            Some(live) => live,
            None => saved,
        })
    }
}

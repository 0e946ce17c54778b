//! One name for one crash, whatever file it was saved to.

use super::notes::{CpuNote, UserRegs};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Names one crash: the same for every file made of it, whatever its name, format, filter level or
/// copy. 32 hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DumpIdentity(pub(super) String);

impl DumpIdentity {
    /// The hexadecimal digits.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for DumpIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// 128-bit FNV-1a: stable for ever, and nobody gains by making two crashes collide.
pub(super) struct Hash(u128);

impl Hash {
    pub fn new() -> Hash {
        Hash(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d)
    }

    pub fn add(&mut self, bytes: &[u8]) {
        const PRIME: u128 = (1 << 88) + 0x13b;
        for &byte in bytes {
            self.0 = (self.0 ^ u128::from(byte)).wrapping_mul(PRIME);
        }
    }

    pub fn hex(&self) -> String {
        format!("{:032x}", self.0)
    }
}

/// Hashes what a crash leaves the same in every format and at every filter level. VMCOREINFO of a
/// panic has the build, the random place of the kernel and the second of the crash. That of a dump
/// that QEMU took of a live machine lacks the time, so there the registers count too. Says whether
/// anything was found.
pub(super) fn hash_crash(hash: &mut Hash, vmcoreinfo: Option<&str>, cpus: &[CpuNote]) -> bool {
    if let Some(text) = vmcoreinfo {
        hash.add(text.as_bytes());
        if text.lines().any(|line| line.starts_with("CRASHTIME=")) {
            return true;
        }
    }
    for prstatus in cpus.iter().filter_map(|cpu| cpu.prstatus) {
        let UserRegs {
            rip,
            rsp,
            rax,
            rbx,
            rcx,
            rdx,
            rsi,
            rdi,
            rbp,
            r8,
            r9,
            r10,
            ..
        } = prstatus.regs;
        for register in [rip, rsp, rax, rbx, rcx, rdx, rsi, rdi, rbp, r8, r9, r10] {
            hash.add(&register.to_le_bytes());
        }
    }
    vmcoreinfo.is_some() || cpus.iter().any(|cpu| cpu.prstatus.is_some())
}

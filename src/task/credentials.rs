//! Who a thread is: `struct cred`, and which seccomp filters it lives under.

use super::page_cache::words;
use crate::dataset::{Blob, Credentials, SeccompState};
use crate::kernel::{KernelError, Object};

/// NGROUPS_MAX of include/uapi/linux/limits.h.
const MAX_GROUPS: u64 = 65536;
/// Longest classic BPF program (BPF_MAXINSNS), and most programs of a thread.
const MAX_INSTRUCTIONS: u64 = 4096;
const MAX_FILTERS: usize = 4096;

/// `task.real_cred`: what the thread is, whatever it may act as for the
/// duration of one system call.
pub(super) fn read(task: &Object<'_>) -> Result<Credentials, KernelError> {
    let cred = task.follow("real_cred")?;
    let id = |field: &str| -> Result<u32, KernelError> {
        Ok(u32::try_from(cred.u(&format!("{field}.val"))?).unwrap_or(u32::MAX))
    };
    // Two 32-bit words, and one of 64 bits since Linux commit f122a08b197d
    // ("capability: just use a 'u64' instead of a 'u32[2]' array") (in v6.3):
    // the same bytes.
    let cap = |field: &str| -> Result<u64, KernelError> {
        let bytes = cred.get(&format!("cap_{field}"))?.bytes()?;
        Ok(words(&bytes).first().copied().unwrap_or(0))
    };
    Ok(Credentials {
        uid: [id("uid")?, id("euid")?, id("suid")?, id("fsuid")?],
        gid: [id("gid")?, id("egid")?, id("sgid")?, id("fsgid")?],
        groups: groups(&cred)?,
        cap_inheritable: cap("inheritable")?,
        cap_permitted: cap("permitted")?,
        cap_effective: cap("effective")?,
        cap_bounding: cap("bset")?,
        cap_ambient: cap("ambient")?,
        securebits: u32::try_from(cred.u("securebits")?).unwrap_or(0),
    })
}

fn groups(cred: &Object<'_>) -> Result<Vec<u32>, KernelError> {
    let info = cred.follow("group_info")?;
    let kernel = cred.kernel();
    let count = info.u("ngroups")?;
    if count > MAX_GROUPS {
        return Err(KernelError::Damaged {
            what: "group_info",
            addr: info.addr(),
            detail: format!("ngroups is {count}"),
        });
    }
    let first = info
        .addr()
        .wrapping_add(kernel.offset_of("group_info", "gid")?);
    (0..count)
        .map(|i| kernel.read_u32(first.wrapping_add(i * 4)))
        .collect()
}

/// The seccomp mode and filters of a thread.
pub(super) fn seccomp(task: &Object<'_>) -> Result<SeccompState, KernelError> {
    let mode = u32::try_from(task.u("seccomp.mode")?).unwrap_or(0);
    let mut filters = Vec::new();
    let mut next = task.follow_opt("seccomp.filter")?;
    while let Some(filter) = next {
        if filters.len() >= MAX_FILTERS {
            return Err(KernelError::Damaged {
                what: "seccomp_filter",
                addr: filter.addr(),
                detail: format!("more than {MAX_FILTERS} filters follow each other"),
            });
        }
        match program(&filter)? {
            Some(program) => filters.push(program),
            // Kept only with CONFIG_CHECKPOINT_RESTORE.
            None => {
                return Ok(SeccompState {
                    mode,
                    filters: Vec::new(),
                });
            }
        }
        next = filter.follow_opt("prev")?;
    }
    filters.reverse();
    Ok(SeccompState { mode, filters })
}

/// The program as it was installed, `struct sock_filter`s of 8 bytes.
fn program(filter: &Object<'_>) -> Result<Option<Blob>, KernelError> {
    let Some(original) = filter.follow("prog")?.follow_opt("orig_prog")? else {
        return Ok(None);
    };
    let len = original.u("len")?;
    if len == 0 || len > MAX_INSTRUCTIONS {
        return Err(KernelError::Damaged {
            what: "sock_fprog_kern",
            addr: original.addr(),
            detail: format!("a program of {len} instructions"),
        });
    }
    let mut bytes = vec![0; usize::try_from(len * 8).unwrap_or(0)];
    filter.kernel().read(original.ptr("filter")?, &mut bytes)?;
    Ok(Some(Blob(bytes)))
}

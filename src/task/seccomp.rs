//! The seccomp filters that a thread lives under: `task.seccomp`.

use crate::dataset::{Blob, SeccompState};
use crate::kernel::{KernelError, Object};

/// Longest classic BPF program (BPF_MAXINSNS), and most programs of a thread.
const MAX_INSTRUCTIONS: u64 = 4096;
const MAX_FILTERS: usize = 4096;
/// `SECCOMP_FILTER_FLAG_*` of include/uapi/linux/seccomp.h.
const LOG: u32 = 1 << 1;
const SPEC_ALLOW: u32 = 1 << 2;
/// `task.atomic_flags`: PFA_SPEC_SSB_DISABLE, PFA_SPEC_IB_DISABLE, which a
/// filter that is installed without SPEC_ALLOW may set.
const SPECULATION_OFF: u64 = 1 << 3 | 1 << 5;
/// `task.seccomp.mode`: SECCOMP_MODE_FILTER.
const BY_FILTER: u32 = 2;

/// The seccomp mode and filters of a thread. What cannot be brought back is
/// said in [`SeccompState::refused`]: a thread must not live on with less.
pub(super) fn read(task: &Object<'_>) -> Result<SeccompState, KernelError> {
    let mode = u32::try_from(task.u("seccomp.mode")?).unwrap_or(0);
    let mut state = SeccompState {
        mode,
        ..SeccompState::default()
    };
    if mode != BY_FILTER {
        return Ok(state);
    }
    let spec = if task.u("atomic_flags")? & SPECULATION_OFF == 0 {
        SPEC_ALLOW
    } else {
        0
    };
    let mut next = task.follow_opt("seccomp.filter")?;
    while let Some(filter) = next {
        if state.filters.len() >= MAX_FILTERS {
            return Err(KernelError::Damaged {
                what: "seccomp_filter",
                addr: filter.addr(),
                detail: format!("more than {MAX_FILTERS} filters follow each other"),
            });
        }
        // Since Linux commit 6a21cc50f0c7 ("seccomp: add a return code to trap
        // to userspace") (in v5.0); reset when the supervisor closes its end.
        if filter.has("notif") && filter.ptr("notif")? != 0 {
            state.refused = Some("one of its filters asks a supervising process".into());
        }
        let log = filter.has("log") && filter.u("log")? != 0;
        match program(&filter)? {
            Some(program) => {
                state.filters.push(program);
                state.flags.push(spec | if log { LOG } else { 0 });
            }
            None => {
                state.refused = Some(
                    "the dead kernel kept no copy of its filters (CONFIG_CHECKPOINT_RESTORE)"
                        .into(),
                );
            }
        }
        next = filter.follow_opt("prev")?;
    }
    if state.refused.is_some() || state.filters.is_empty() {
        state.filters.clear();
        state.flags.clear();
        let none = || "it had no filter, but was in filter mode".to_owned();
        state.refused.get_or_insert_with(none);
    }
    // The oldest first: so they are installed.
    state.filters.reverse();
    state.flags.reverse();
    Ok(state)
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

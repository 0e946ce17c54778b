//! Who a thread is: `struct cred`.

use super::namespace::IdMaps;
use super::page_cache::words;
use crate::dataset::Credentials;
use crate::kernel::{KernelError, Object};

/// NGROUPS_MAX of include/uapi/linux/limits.h.
const MAX_GROUPS: u64 = 65536;

/// `task.real_cred`: what the thread is, whatever it may act as for the
/// duration of one system call. IDs are those of its user namespace.
pub(super) fn read(task: &Object<'_>) -> Result<Credentials, KernelError> {
    let cred = task.follow("real_cred")?;
    let maps = IdMaps::of(&cred)?;
    let id = |field: &str| -> Result<u32, KernelError> {
        let id = u32::try_from(cred.u(&format!("{field}.val"))?).unwrap_or(u32::MAX);
        Ok(match field.ends_with("uid") {
            true => maps.user(id),
            false => maps.group(id),
        })
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
        groups: groups(&cred)?
            .into_iter()
            .map(|id| maps.group(id))
            .collect(),
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

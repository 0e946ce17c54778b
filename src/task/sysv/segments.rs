//! Shared memory segments of the dead kernel.

use super::super::extract::Extraction;
use super::super::{file, inode};
use super::{Finder, SEGMENTS, Tie, pid_of};
use crate::dataset::{MappingKind, ObjectId, SysvKind};
use crate::kernel::{KernelError, Object};

/// `shm_perm.mode`. Linux include/uapi/linux/shm.h.
const SHM_DEST: u64 = 0o1000;
const SHM_LOCKED: u64 = 0o2000;
/// `shmem_inode_info.flags`.
const VM_NORESERVE: u64 = 0x20_0000;

/// A process's mapping of a segment: its content's identity, and which `shmat`
/// it is of. `None`: `file` is no such mapping.
pub(in crate::task) fn attachment<'k>(
    x: &mut Extraction<'_, 'k>,
    file: &Object<'k>,
    of: &Object<'k>,
    name: &str,
) -> Result<Option<(ObjectId, ObjectId)>, KernelError> {
    let operations = file::operations(x.kernel, file)?;
    if !operations.starts_with("shm_file_operations") {
        return Ok(None);
    }
    let cache = file.follow("f_mapping")?;
    let memory = x.shared_memory(of, Some(&cache), name)?;
    Ok(Some((memory, ObjectId(file.addr()))))
}

impl<'k> Finder<'k> {
    pub(super) fn segment(
        &self,
        x: &mut Extraction<'_, 'k>,
        segment: &Object<'k>,
    ) -> Result<(Tie, Option<SysvKind>), KernelError> {
        let opened = segment.follow("shm_file")?;
        let own = opened.follow("f_inode")?;
        let id = ObjectId(own.addr());
        let perm = segment.get("shm_perm")?;
        let creator = pid_of(segment, "shm_cprid")?;
        let mut tie = self.tie(
            &perm,
            SEGMENTS,
            &[creator, pid_of(segment, "shm_lprid")?],
            false,
        )?;
        let mapped = x.out.processes.iter().flat_map(|p| &p.mm.vmas);
        if mapped
            .map(|vma| &vma.kind)
            .any(|kind| matches!(kind, MappingKind::Segment { memory, .. } if *memory == id))
        {
            tie = Tie::Used;
        }
        if !matches!(tie, Tie::Used | Tie::Unused) {
            return Ok((tie, None));
        }
        let cache = opened.follow("f_mapping")?;
        let name = format!("/SYSV{:08x}", perm.u("key")?);
        let memory = x.shared_memory(&own, Some(&cache), &name)?;
        let mode = perm.u("mode")?;
        let flags = own
            .container_of("shmem_inode_info", "vfs_inode")
            .and_then(|info| info.u("flags"));
        let of_shmem = inode::fs_type(&own)? != "hugetlbfs";
        Ok((
            tie,
            Some(SysvKind::Segment {
                memory,
                size: segment.u("shm_segsz")?,
                creator,
                removed: mode & SHM_DEST != 0,
                locked: mode & SHM_LOCKED != 0,
                no_reserve: of_shmem && flags.is_ok_and(|flags| flags & VM_NORESERVE != 0),
            }),
        ))
    }
}

//! Descriptors of virtual machines, which the KVM stage makes.

use super::{Place, Workshop};
use crate::dataset::{FileKind, OpenFile};
use crate::restore::error::Context;
use crate::restore::kvm::KvmFiles;
use crate::restore::objects::Objects;
use crate::restore::stub::Family;
use crate::restore::{Errno, RestoreError, calls};

impl Workshop<'_> {
    /// The files that KVM has made in a stub.
    pub fn add_kvm(&mut self, stub: usize, files: KvmFiles) {
        self.kvm.insert(stub, files);
    }

    /// They, with the numbers that they have now.
    pub fn kvm(&self, stub: usize) -> Option<&KvmFiles> {
        self.kvm.get(&stub)
    }

    /// A copy of a descriptor that KVM made.
    pub(super) fn kvm_file(
        &self,
        file: &OpenFile,
        place: &mut Place<'_>,
    ) -> Result<i32, RestoreError> {
        let made = self.kvm.get(&place.stub);
        let fd = made.and_then(|made| match &file.kind {
            FileKind::KvmVm { vm } => made.vms.get(vm).copied(),
            FileKind::KvmVcpu { vcpu, .. } => made.vcpus.get(vcpu).copied(),
            _ => Some(made.system),
        });
        match fd {
            Some(fd) => calls::fcntl(
                place.sys,
                fd,
                libc::F_DUPFD_CLOEXEC,
                i64::from(place.base).cast_unsigned(),
            )
            .and_then(|fd| i32::try_from(fd).map_err(|_| Errno(libc::EBADF)))
            .during(place.pid, || "fcntl(F_DUPFD_CLOEXEC)".into()),
            None if matches!(file.kind, FileKind::KvmSystem) => {
                calls::open(place.sys, "/dev/kvm", libc::O_RDWR | libc::O_CLOEXEC)
                    .during(place.pid, || "open /dev/kvm".into())
            }
            None => Err(RestoreError::Malformed {
                pid: place.pid,
                what: format!("the descriptor {}", file.path),
                why: "its virtual machine belongs to no process of this dataset".into(),
            }),
        }
    }

    /// The number that a file of a virtual machine has for good, for those
    /// calls that come after its making.
    ///
    /// # Errors
    /// fcntl refused.
    pub fn settle_kvm(
        &mut self,
        stub: usize,
        family: &mut Family<'_>,
        objects: &Objects,
    ) -> Result<(), RestoreError> {
        let pid = family.process(stub)?.pid;
        let sys = family.leader(stub)?;
        let Some(files) = self.kvm.get_mut(&stub) else {
            return Ok(());
        };
        let all = files
            .vms
            .values_mut()
            .chain(files.vcpus.values_mut())
            .chain(files.temporary.iter_mut())
            .chain([&mut files.system]);
        for fd in all.filter(|fd| **fd >= 0) {
            *fd = calls::raise(sys, *fd, objects.base).during(pid, || "fcntl".into())?;
        }
        Ok(())
    }
}

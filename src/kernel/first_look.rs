//! What VMCOREINFO alone leads to: the kernel's names and its log.
//!
//! [`Kernel`](super::Kernel) needs kallsyms and BTF, which a dump that was cut short may not have.
//! This needs a few pages of the kernel's data.

use std::sync::Arc;

use super::address::AddressMap;
use super::log::{self, LogRecord, Reader};
use super::{Kernel, KernelError, VmcoreInfo};
use crate::dump::PhysicalMemory;

/// Bytes of each name in `struct new_utsname`. Linux include/uapi/linux/utsname.h; six of them, in
/// an order that never changes.
const UTS_NAME: u64 = 65;

/// What `uname -a` printed on the dead host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UtsNames {
    /// Host name.
    pub nodename: String,
    /// "6.1.0-56-cloud-amd64".
    pub release: String,
    /// The build: "#1 SMP PREEMPT_DYNAMIC Debian 6.1.192-2 (2026-10-01)".
    pub version: String,
}

/// A dead kernel of which no more is known than its VMCOREINFO note says.
pub struct FirstLook {
    info: VmcoreInfo,
    addresses: AddressMap,
}

impl FirstLook {
    /// `vmcoreinfo` is the text of the note.
    pub fn new(
        memory: Arc<dyn PhysicalMemory>,
        vmcoreinfo: &str,
    ) -> Result<FirstLook, KernelError> {
        let info = VmcoreInfo::parse(vmcoreinfo);
        let mut addresses = AddressMap::new(memory, &info)?;
        // Where it is, kallsyms says.
        addresses.forget_direct_map();
        Ok(FirstLook { info, addresses })
    }

    /// The parsed note.
    #[must_use]
    pub fn vmcoreinfo(&self) -> &VmcoreInfo {
        &self.info
    }

    /// The host's and the kernel's names.
    pub fn names(&self) -> Result<UtsNames, KernelError> {
        names(&self.info, &|addr, buf| self.addresses.read(addr, buf))
    }

    /// The newest `most` records of the log, the oldest of them first.
    pub fn log(&self, most: usize) -> Result<Vec<LogRecord>, KernelError> {
        log::newest(
            &self.info,
            &|addr, buf| self.addresses.read(addr, buf),
            most,
        )
    }
}

impl Kernel {
    /// The host's and the kernel's names.
    pub fn names(&self) -> Result<UtsNames, KernelError> {
        names(&self.info, &|addr, buf| self.read(addr, buf))
    }

    /// The newest `most` records of the log, the oldest of them first.
    pub fn log(&self, most: usize) -> Result<Vec<LogRecord>, KernelError> {
        log::newest(&self.info, &|addr, buf| self.read(addr, buf), most)
    }
}

fn names(info: &VmcoreInfo, read: &Reader<'_>) -> Result<UtsNames, KernelError> {
    let missing = |key: &str| KernelError::NoInfo { key: key.into() };
    let namespace = info
        .symbol("init_uts_ns")?
        .ok_or_else(|| missing("SYMBOL(init_uts_ns)"))?;
    let key = "OFFSET(uts_namespace.name)";
    let value = info.need(key)?;
    let offset = value.parse::<u64>().map_err(|_| KernelError::BadInfo {
        key: key.into(),
        value: value.into(),
        wanted: "a decimal number",
    })?;
    let name = |index: u64| -> Result<String, KernelError> {
        let mut raw = [0; UTS_NAME as usize];
        let at = namespace
            .wrapping_add(offset)
            .wrapping_add(index * UTS_NAME);
        read(at, &mut raw)?;
        let end = raw.iter().position(|&b| b == 0).unwrap_or(raw.len());
        Ok(String::from_utf8_lossy(&raw[..end]).into_owned())
    };
    Ok(UtsNames {
        nodename: name(1)?,
        release: name(2)?,
        version: name(3)?,
    })
}

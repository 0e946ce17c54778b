//! The modules that were loaded: their symbols, read when first asked for, and the types of theirs
//! and of vmlinux.

use std::sync::{Arc, OnceLock};

use super::address::AddressMap;
use super::btf::Btf;
use super::kallsyms::Kallsyms;
use super::modules::{self, Module, ModuleSymbols};
use super::types::{Blob, Types};
use super::{Kernel, KernelError, containers};

/// vmlinux's BTF has 4 to 10 MB, a module's a few hundred kB.
const MAX_BTF: u64 = 64 << 20;

/// A module, and its symbols once they were needed.
pub(super) struct LoadedModule {
    pub(super) module: Module,
    symbols: OnceLock<Result<ModuleSymbols, KernelError>>,
}

impl Kernel {
    pub(super) fn loaded_modules(&self) -> Result<&[LoadedModule], KernelError> {
        self.modules
            .get_or_init(|| {
                let modules = modules::read_modules(self)?;
                Ok(modules
                    .into_iter()
                    .map(|module| LoadedModule {
                        module,
                        symbols: OnceLock::new(),
                    })
                    .collect())
            })
            .as_deref()
            .map_err(Clone::clone)
    }

    pub(super) fn symbols_of<'m>(
        &self,
        loaded: &'m LoadedModule,
    ) -> &'m Result<ModuleSymbols, KernelError> {
        loaded
            .symbols
            .get_or_init(|| ModuleSymbols::read(self, &loaded.module))
    }

    /// Reads the BTF of each module from the list `btf_modules`. One that cannot be read is as if
    /// it had none: its types are missed by name when they are needed.
    pub(super) fn add_module_types(&mut self) {
        let vmlinux = self.types.vmlinux();
        let blobs = match self.module_btfs() {
            Ok(blobs) => blobs,
            Err(error) => {
                tracing::debug!(%error, "no BTF of modules");
                return;
            }
        };
        for (module, data) in blobs {
            match data.and_then(|data| {
                Btf::parse(data, Some(Arc::clone(&vmlinux))).map_err(|detail| KernelError::Btf {
                    module: module.clone(),
                    detail,
                })
            }) {
                Ok(btf) => self.types.add(Blob {
                    module,
                    btf: Arc::new(btf),
                }),
                Err(error) => tracing::warn!(%module, %error, "its types cannot be used"),
            }
        }
    }

    /// Each module's name and its BTF's bytes. `struct btf_module` of Linux kernel/bpf/btf.c, since
    /// commit 36e68442d1af ("bpf: Load and verify kernel module BTFs") (in v5.11).
    #[allow(clippy::type_complexity)]
    fn module_btfs(&self) -> Result<Vec<(String, Result<Vec<u8>, KernelError>)>, KernelError> {
        let Some(head) = self.vmlinux_symbol("btf_modules") else {
            return Ok(Vec::new());
        };
        let head = self.object("list_head", head)?;
        let mut blobs = Vec::new();
        for module in containers::list(&head, "btf_module", "list")? {
            let name = module.follow("module")?.get("name")?.string()?;
            let data = module.follow("btf").and_then(|btf| {
                let size = btf.u("data_size")?;
                if size > MAX_BTF {
                    return Err(KernelError::Damaged {
                        what: "struct btf",
                        addr: btf.addr(),
                        detail: format!("its data_size is {size}"),
                    });
                }
                btf.follow("data")?.read_bytes(size)
            });
            blobs.push((name, data));
        }
        Ok(blobs)
    }
}

/// vmlinux's BTF, between two symbols of its read-only data.
pub(super) fn read_vmlinux_types(
    kallsyms: &Kallsyms,
    addresses: &AddressMap,
) -> Result<Types, KernelError> {
    let (Some(start), Some(stop)) = (
        kallsyms.address("__start_BTF"),
        kallsyms.address("__stop_BTF"),
    ) else {
        return Err(KernelError::Unsupported {
            what: "a kernel built without BTF (CONFIG_DEBUG_INFO_BTF=n)".into(),
        });
    };
    let damaged = |detail| KernelError::Btf {
        module: "vmlinux".into(),
        detail,
    };
    let size = stop
        .checked_sub(start)
        .filter(|size| *size <= MAX_BTF)
        .and_then(|size| usize::try_from(size).ok())
        .ok_or_else(|| damaged(format!("it goes from {start:#x} to {stop:#x}")))?;
    let mut data = vec![0; size];
    addresses.read(start, &mut data)?;
    let btf = Btf::parse(data, None).map_err(damaged)?;
    Ok(Types::new(Blob {
        module: "vmlinux".into(),
        btf: Arc::new(btf),
    }))
}

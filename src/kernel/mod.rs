//! The dead kernel: what it calls things, how they are laid out, and where its addresses lead.
//!
//! Everything comes from the dump itself; there is no debug information and no knowledge of kernel
//! versions here. VMCOREINFO ([`VmcoreInfo`]) says where kallsyms and the page tables are, kallsyms
//! where everything else is, and BTF how it is laid out, for vmlinux and for each module (KVM's
//! types are in modules).
//!
//! [`Kernel`] answers questions by name; an [`Object`] is a typed place in the dead kernel's memory;
//! [`containers`] walks the kernel's lists and trees; an [`AddressSpace`] is the page tables of a
//! process.
//!
//! ```no_run
//! # use std::sync::Arc;
//! # use vmrestore::{dump::Dump, kernel::{Kernel, containers}};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let dump = Dump::open("vmcore".as_ref())?;
//! let info = dump.vmcoreinfo().unwrap_or_default().to_owned();
//! let kernel = Kernel::open(Arc::new(dump), &info)?;
//! let init = kernel.object("task_struct", kernel.symbol("init_task")?)?;
//! for task in containers::list(&init.get("tasks")?, "task_struct", "tasks")? {
//!     println!("{} {}", task.u("pid")?, task.get("comm")?.string()?);
//! }
//! # Ok(()) }
//! ```

mod address;
mod btf;
pub mod containers;
mod error;
mod first_look;
mod kallsyms;
mod kallsyms_place;
mod list;
mod log;
mod maple;
mod modules;
mod object;
mod page_table;
mod percpu;
mod rbtree;
mod types;
mod vmcoreinfo;
mod xarray;
mod xsave;

use std::sync::{Arc, OnceLock};

pub use error::KernelError;
pub use first_look::{FirstLook, UtsNames};
pub use log::LogRecord;
pub use modules::Module;
pub use object::Object;
pub use page_table::{AddressSpace, Entry, Mapping, Present, SwapEntry};
pub use vmcoreinfo::VmcoreInfo;
pub use xsave::{XsaveComponent, XsaveLayout};

use crate::dump::PhysicalMemory;
use address::AddressMap;
use btf::Btf;
use kallsyms::Kallsyms;
use modules::ModuleSymbols;
use types::{Blob, TypeId, Types};

/// vmlinux's BTF has 4 to 10 MB, a module's a few hundred kB.
const MAX_BTF: u64 = 64 << 20;

/// The dead kernel. To be shared between threads by reference.
pub struct Kernel {
    info: VmcoreInfo,
    release: String,
    addresses: AddressMap,
    kallsyms: Kallsyms,
    types: Types,
    vmemmap: u64,
    page_size: u64,
    modules: OnceLock<Result<Vec<LoadedModule>, KernelError>>,
}

struct LoadedModule {
    module: Module,
    symbols: OnceLock<Result<ModuleSymbols, KernelError>>,
}

impl Kernel {
    /// Finds the kernel in its memory. `vmcoreinfo` is the text of the dump's VMCOREINFO note.
    pub fn open(memory: Arc<dyn PhysicalMemory>, vmcoreinfo: &str) -> Result<Kernel, KernelError> {
        let info = VmcoreInfo::parse(vmcoreinfo);
        if let Some(size) = info.get("PAGESIZE").filter(|size| *size != "4096") {
            return Err(KernelError::BadInfo {
                key: "PAGESIZE".into(),
                value: size.into(),
                wanted: "4096 (only x86-64 is known)",
            });
        }
        let release = info.get("OSRELEASE").unwrap_or_default().to_owned();
        let mut addresses = AddressMap::new(memory, &info)?;
        // kallsyms is in the image, which needs nothing but VMCOREINFO to be read.
        let kallsyms = Kallsyms::read(&info, &|addr, buf| addresses.read(addr, buf))?;
        let variable = |name: &str| -> Result<Option<u64>, KernelError> {
            let Some(addr) = kallsyms.address(name) else {
                return Ok(None);
            };
            let mut raw = [0; 8];
            addresses.read(addr, &mut raw)?;
            Ok(Some(u64::from_le_bytes(raw)))
        };
        let direct_base = variable("page_offset_base")?;
        let vmemmap = variable("vmemmap_base")?.unwrap_or_else(|| addresses.default_vmemmap());
        if let Some(base) = direct_base {
            addresses.set_direct_base(base);
        }

        let types = read_vmlinux_types(&kallsyms, &addresses)?;
        let mut kernel = Kernel {
            info,
            release,
            addresses,
            kallsyms,
            types,
            vmemmap,
            page_size: 0,
            modules: OnceLock::new(),
        };
        kernel.page_size = kernel.size_of("page")?;
        kernel.add_module_types();
        Ok(kernel)
    }

    /// Finds the kernel in memory that came without a VMCOREINFO note, such as a dump that QEMU or
    /// libvirt made of a machine without QEMU's vmcoreinfo device. Reads all of the memory, if need
    /// be.
    ///
    /// Guests of the machine have such notes too. A guest's note leads nowhere in the host's memory,
    /// as a rule; but one of the same build at the same place leads to the *host's* kernel, with the
    /// guest's word on paging and encryption. So a note counts only if the kernel that it leads to
    /// calls that very page its own.
    pub fn discover(memory: Arc<dyn PhysicalMemory>) -> Result<Kernel, KernelError> {
        // A host may have hundreds of guests.
        const MAX_NOTES: usize = 4096;
        let mut first_error = None;
        for found in vmcoreinfo::search(&*memory).take(MAX_NOTES) {
            let opened = Kernel::open(Arc::clone(&memory), &found.text)
                .and_then(|kernel| kernel.owns_note(found.pfn).map(|owns| (kernel, owns)));
            let error = match opened {
                Ok((kernel, true)) => return Ok(kernel),
                Ok((_, false)) => KernelError::Damaged {
                    what: "VMCOREINFO",
                    addr: found.pfn.saturating_mul(crate::dump::PAGE_SIZE),
                    detail: "the kernel that it leads to has its own elsewhere: a guest's?".into(),
                },
                Err(error) => error,
            };
            first_error = first_error.or(Some(error));
        }
        Err(first_error.unwrap_or_else(|| KernelError::NoInfo {
            key: "OSRELEASE, as there is no such note, neither in the dump nor in memory".into(),
        }))
    }

    /// Whether the note that this kernel keeps ready is in this page frame. Linux
    /// kernel/crash_core.c, `unsigned char *vmcoreinfo_data`, since commit 203e9e41219b ("kexec: move
    /// vmcoreinfo out of the kernel's .bss section") (in v4.13).
    fn owns_note(&self, pfn: u64) -> Result<bool, KernelError> {
        let Some(variable) = self.vmlinux_symbol("vmcoreinfo_data") else {
            // An older kernel; or one without CONFIG_KALLSYMS_ALL, which names no variables at all.
            return Ok(true);
        };
        let page = self.virt_to_phys(self.read_u64(variable)?)?;
        Ok(page / crate::dump::PAGE_SIZE == pfn)
    }

    /// Kernel release, as `uname -r` printed it. Empty if the note does not say.
    #[must_use]
    pub fn release(&self) -> &str {
        &self.release
    }

    /// The physical memory it is read from.
    #[must_use]
    pub fn memory(&self) -> &Arc<dyn PhysicalMemory> {
        self.addresses.memory()
    }

    /// The parsed VMCOREINFO note.
    #[must_use]
    pub fn vmcoreinfo(&self) -> &VmcoreInfo {
        &self.info
    }

    /// Address of a symbol: of vmlinux, or of the first module that has it.
    pub fn symbol(&self, name: &str) -> Result<u64, KernelError> {
        if let Some(addr) = self.vmlinux_symbol(name) {
            return Ok(addr);
        }
        // A damaged module hides its own symbols, not those of the others.
        let in_modules = self.loaded_modules()?.iter().find_map(|module| {
            let symbols = self.symbols_of(module).as_ref().ok()?;
            symbols.address(name)
        });
        in_modules.ok_or_else(|| KernelError::NoSymbol {
            name: name.to_owned(),
            module: None,
        })
    }

    /// Address of a module's symbol. The name is that of the module ("kvm_amd"), not of its file.
    pub fn module_symbol(&self, module: &str, name: &str) -> Result<u64, KernelError> {
        let loaded = self
            .loaded_modules()?
            .iter()
            .find(|loaded| loaded.module.name == module)
            .ok_or_else(|| KernelError::NoModule {
                name: module.to_owned(),
            })?;
        let symbols = self.symbols_of(loaded).as_ref().map_err(Clone::clone)?;
        symbols.address(name).ok_or_else(|| KernelError::NoSymbol {
            name: name.to_owned(),
            module: Some(module.to_owned()),
        })
    }

    /// The modules that were loaded, the youngest first.
    pub fn modules(&self) -> Result<Vec<Module>, KernelError> {
        Ok(self
            .loaded_modules()?
            .iter()
            .map(|loaded| loaded.module.clone())
            .collect())
    }

    /// The symbol at or next below an address, of vmlinux or a module, and how many bytes below.
    /// It tells what a table of functions is: `("kvm_vm_fops", 0)`.
    #[must_use]
    pub fn symbol_at(&self, addr: u64) -> Option<(String, u64)> {
        if let Ok(loaded) = self.loaded_modules()
            && let Some(module) = loaded.iter().find(|loaded| loaded.module.contains(addr))
        {
            return self.symbols_of(module).as_ref().ok()?.at(addr);
        }
        let bound = |name, or| self.kallsyms.address(name).unwrap_or(or);
        let image = bound("_text", u64::MAX)..=bound("_end", u64::MAX);
        image.contains(&addr).then(|| self.kallsyms.at(addr))?
    }

    /// Bytes from a vmlinux symbol to the next: its size, and perhaps padding.
    pub fn symbol_size(&self, name: &str) -> Result<u64, KernelError> {
        let no_symbol = || KernelError::NoSymbol {
            name: name.to_owned(),
            module: None,
        };
        let addr = self.kallsyms.address(name).ok_or_else(no_symbol)?;
        let next = self.kallsyms.next_above(addr).ok_or_else(no_symbol)?;
        Ok(next - addr)
    }

    /// Number of symbols that vmlinux has.
    #[must_use]
    pub fn symbol_count(&self) -> usize {
        self.kallsyms.len()
    }

    /// Reads at a kernel virtual address.
    pub fn read(&self, addr: u64, buf: &mut [u8]) -> Result<(), KernelError> {
        self.addresses.read(addr, buf)
    }

    /// Reads a little-endian u64.
    pub fn read_u64(&self, addr: u64) -> Result<u64, KernelError> {
        let mut raw = [0; 8];
        self.read(addr, &mut raw)?;
        Ok(u64::from_le_bytes(raw))
    }

    /// Reads a little-endian u32.
    pub fn read_u32(&self, addr: u64) -> Result<u32, KernelError> {
        let mut raw = [0; 4];
        self.read(addr, &mut raw)?;
        Ok(u32::from_le_bytes(raw))
    }

    /// Reads a C string of up to `max` bytes; a longer one is cut. Bytes that are no UTF-8 are
    /// replaced.
    pub fn read_cstr(&self, addr: u64, max: usize) -> Result<String, KernelError> {
        let bytes = self.read_cstr_bytes(addr, max)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// The same, as bytes.
    pub fn read_cstr_bytes(&self, addr: u64, max: usize) -> Result<Vec<u8>, KernelError> {
        let mut bytes = Vec::new();
        while bytes.len() < max {
            let at = addr.wrapping_add(bytes.len() as u64);
            // Not beyond the page: the string may end before it, and the next may be missing.
            let len = (64 - at as usize % 64).min(max - bytes.len());
            let mut piece = [0; 64];
            self.read(at, &mut piece[..len])?;
            match piece[..len].iter().position(|&byte| byte == 0) {
                Some(end) => {
                    bytes.extend_from_slice(&piece[..end]);
                    break;
                }
                None => bytes.extend_from_slice(&piece[..len]),
            }
        }
        Ok(bytes)
    }

    /// The physical address that a kernel virtual one leads to.
    pub fn virt_to_phys(&self, addr: u64) -> Result<u64, KernelError> {
        Ok(self.addresses.translate(addr)?.0)
    }

    /// The direct map's address of a physical one.
    #[must_use]
    pub fn phys_to_virt(&self, addr: u64) -> u64 {
        self.addresses.phys_to_virt(addr)
    }

    /// The page frame that a `struct page *` (or `struct folio *`) stands for.
    pub fn page_to_pfn(&self, page: u64) -> Result<u64, KernelError> {
        let offset = page.wrapping_sub(self.vmemmap);
        let pfn = offset / self.page_size.max(1);
        // 52 bits of physical address make 2⁴⁰ page frames.
        if !offset.is_multiple_of(self.page_size.max(1)) || pfn >= 1 << 40 {
            return Err(KernelError::Damaged {
                what: "pointer to struct page",
                addr: page,
                detail: format!("the array of them begins at {:#x}", self.vmemmap),
            });
        }
        Ok(pfn)
    }

    /// The address of the `struct page` of a page frame. It may lie in a hole.
    #[must_use]
    pub fn pfn_to_page(&self, pfn: u64) -> u64 {
        self.vmemmap.wrapping_add(pfn.wrapping_mul(self.page_size))
    }

    /// The physical address in a page-table entry.
    fn frame_of(&self, entry: u64) -> u64 {
        self.addresses.frame(entry)
    }

    /// Whether the kernel used 5-level page tables: 57 bits of a virtual address count, and not 48.
    #[must_use]
    pub fn five_level_paging(&self) -> bool {
        self.addresses.five_levels()
    }

    /// A typed place. `ty` is a C name ("task_struct", "struct page", "u64", "void *") of vmlinux or
    /// of any module.
    pub fn object<'k>(&'k self, ty: &str, addr: u64) -> Result<Object<'k>, KernelError> {
        Ok(Object::new(self, addr, self.find_type(ty, None)?))
    }

    /// A typed place; the type is looked for in the module's BTF first, and then in vmlinux's.
    pub fn object_in<'k>(
        &'k self,
        module: &str,
        ty: &str,
        addr: u64,
    ) -> Result<Object<'k>, KernelError> {
        let found = self.types.find_in(module, ty);
        let ty = found.ok_or_else(|| KernelError::NoType {
            name: ty.to_owned(),
            module: Some(module.to_owned()),
        })?;
        Ok(Object::new(self, addr, ty))
    }

    /// Whether there is such a type.
    #[must_use]
    pub fn has_type(&self, ty: &str) -> bool {
        self.types.find(ty, None).is_some()
    }

    /// Size of a type, in bytes.
    pub fn size_of(&self, ty: &str) -> Result<u64, KernelError> {
        Ok(self.types.size(self.find_type(ty, None)?))
    }

    /// Offset of the member at `path`, in bytes; see [`Object::get`].
    pub fn offset_of(&self, ty: &str, path: &str) -> Result<u64, KernelError> {
        let ty = self.find_type(ty, None)?;
        Ok(self.types.place(ty, path)?.offset)
    }

    /// The value of an enumerator, of the enumeration named or, with an empty name, of any.
    #[must_use]
    pub fn enum_value(&self, enumeration: &str, name: &str) -> Option<i64> {
        self.types.enumerator(enumeration, name)
    }

    fn vmlinux_symbol(&self, name: &str) -> Option<u64> {
        self.kallsyms.address(name)
    }

    fn types(&self) -> &Types {
        &self.types
    }

    fn find_type(&self, ty: &str, near: Option<TypeId>) -> Result<TypeId, KernelError> {
        self.types
            .find(ty, near)
            .ok_or_else(|| KernelError::NoType {
                name: ty.to_owned(),
                module: None,
            })
    }

    fn loaded_modules(&self) -> Result<&[LoadedModule], KernelError> {
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

    fn symbols_of<'m>(&self, loaded: &'m LoadedModule) -> &'m Result<ModuleSymbols, KernelError> {
        loaded
            .symbols
            .get_or_init(|| ModuleSymbols::read(self, &loaded.module))
    }

    /// Reads the BTF of each module from the list `btf_modules`. One that cannot be read is as if
    /// it had none: its types are missed by name when they are needed.
    fn add_module_types(&mut self) {
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

impl std::fmt::Debug for Kernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kernel")
            .field("release", &self.release)
            .finish_non_exhaustive()
    }
}

/// vmlinux's BTF, between two symbols of its read-only data.
fn read_vmlinux_types(kallsyms: &Kallsyms, addresses: &AddressMap) -> Result<Types, KernelError> {
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

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
mod cpu_state;
mod cpu_state_text;
mod error;
mod first_look;
mod kallsyms;
mod kallsyms_place;
mod keeper;
mod list;
mod loaded;
mod log;
mod maple;
mod modules;
mod object;
mod page_table;
mod percpu;
mod rbtree;
mod reading;
mod types;
mod vmcoreinfo;
mod xarray;
mod xsave;

use std::sync::{Arc, OnceLock};

pub use cpu_state::{CpuSource, CpuState, CpuThread, StoppedAt, from_notes, from_text};
pub use cpu_state_text::{CpuText, CpuTextError, parse as parse_cpu_text};
pub use error::KernelError;
pub use first_look::{FirstLook, UtsNames};
pub use log::LogRecord;
pub use modules::Module;
pub use object::Object;
pub use page_table::{AddressSpace, Entry, Mapping, Present, SwapEntry};
pub use vmcoreinfo::VmcoreInfo;
pub use xsave::{FpuRegisters, XsaveComponent, XsaveLayout};

use crate::dump::PhysicalMemory;
use address::AddressMap;
use kallsyms::Kallsyms;
use loaded::{LoadedModule, read_vmlinux_types};
use types::{TypeId, Types};

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
    keeper: OnceLock<Result<Option<keeper::Keeper>, KernelError>>,
    /// What a hypervisor said of the CPUs.
    outside: Vec<CpuState>,
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
        crate::phases::done("symbols");
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
            keeper: OnceLock::new(),
            outside: Vec::new(),
        };
        kernel.page_size = kernel.size_of("page")?;
        kernel.add_module_types();
        crate::phases::done("types");
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

    /// The text of the VMCOREINFO note of the kernel in this memory: that of the kernel which calls
    /// the page its own, as in [`Kernel::discover`]; or, where no kernel can be read (it has no
    /// BTF, say), of the one page that looks like a note. Reads all of the memory, if need be.
    #[must_use]
    pub fn note_in(memory: Arc<dyn PhysicalMemory>) -> Option<String> {
        const MAX_NOTES: usize = 4096;
        let mut unproven = Vec::new();
        for found in vmcoreinfo::search(&*memory).take(MAX_NOTES) {
            let owns = Kernel::open(Arc::clone(&memory), &found.text)
                .and_then(|kernel| kernel.owns_note(found.pfn));
            match owns {
                Ok(true) => return Some(found.text),
                Ok(false) => {}
                Err(_) => unproven.push(found.text),
            }
        }
        unproven.pop().filter(|_| unproven.is_empty())
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
}

impl std::fmt::Debug for Kernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kernel")
            .field("release", &self.release)
            .finish_non_exhaustive()
    }
}

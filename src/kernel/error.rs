//! Why the dead kernel could not be read.

use std::sync::Arc;

use crate::dump::ReadError;

/// Why a question about the dead kernel has no answer.
///
/// Cheap to clone, so that a failure can be remembered and told again.
#[derive(Clone, Debug, thiserror::Error)]
pub enum KernelError {
    /// The dump does not hold these bytes, or holds them damaged.
    #[error("cannot read {len} bytes of kernel memory at {addr:#x} (physical {phys:#x})")]
    Memory {
        /// Kernel virtual address.
        addr: u64,
        /// Physical address that `addr` leads to.
        phys: u64,
        /// Bytes wanted.
        len: usize,
        /// What the dump said.
        #[source]
        source: Arc<ReadError>,
    },
    /// The address is mapped by no page table.
    #[error("address {addr:#x} is not mapped: the {level} entry is {entry:#x} (a stale pointer?)")]
    Unmapped {
        /// Virtual address.
        addr: u64,
        /// "pgd", "p4d", "pud", "pmd" or "pte".
        level: &'static str,
        /// The entry's raw value.
        entry: u64,
    },
    /// VMCOREINFO lacks a line that is needed.
    #[error("VMCOREINFO has no {key} (is this a Linux x86-64 dump, of kernel 6.0 or newer?)")]
    NoInfo {
        /// Key, as it is written in the note.
        key: String,
    },
    /// A line of VMCOREINFO cannot be what it says.
    #[error("VMCOREINFO says {key}={value}, which is not {wanted}")]
    BadInfo {
        /// Key, as it is written in the note.
        key: String,
        /// Value, as it is written in the note.
        value: String,
        /// What was expected there.
        wanted: &'static str,
    },
    /// No symbol of that name.
    #[error("the dead kernel has no symbol {name}{}", in_module(.module))]
    NoSymbol {
        /// Symbol.
        name: String,
        /// The module it was looked for in; none for anywhere.
        module: Option<String>,
    },
    /// No such module was loaded.
    #[error("the dead kernel had no module {name} loaded")]
    NoModule {
        /// Module.
        name: String,
    },
    /// No type of that name.
    #[error("the dead kernel's BTF has no type {name}{} (is the module loaded, with BTF?)", in_module(.module))]
    NoType {
        /// Type.
        name: String,
        /// The module it was looked for in; none for anywhere.
        module: Option<String>,
    },
    /// The type has no such member.
    #[error("{ty} has no member {path}")]
    NoMember {
        /// Type.
        ty: String,
        /// Path asked for.
        path: String,
    },
    /// An index outside its array.
    #[error("index {index} is outside {path} of {ty}, which has {len} elements")]
    OutOfBounds {
        /// Type the path starts from.
        ty: String,
        /// Path asked for.
        path: String,
        /// Index asked for.
        index: u64,
        /// Elements in the array.
        len: u64,
    },
    /// The question does not fit the type.
    #[error("{ty} at {addr:#x} is not {wanted}")]
    WrongKind {
        /// Type.
        ty: String,
        /// Address.
        addr: u64,
        /// What the caller needed it to be.
        wanted: &'static str,
    },
    /// A pointer that must lead somewhere is null.
    #[error("null pointer where {ty} was expected, read from {addr:#x}")]
    Null {
        /// Type pointed to.
        ty: String,
        /// Where the pointer stands.
        addr: u64,
    },
    /// A structure contradicts itself.
    #[error(
        "{what} at {addr:#x} is damaged: {detail} (overwritten, or changing when the host died?)"
    )]
    Damaged {
        /// Structure.
        what: &'static str,
        /// Address.
        addr: u64,
        /// The contradiction, with its numbers.
        detail: String,
    },
    /// BTF that cannot be parsed.
    #[error("the BTF of {module} is damaged: {detail}")]
    Btf {
        /// "vmlinux" or a module.
        module: String,
        /// The contradiction, with its numbers.
        detail: String,
    },
    /// The kernel does something that this program does not know.
    #[error("unsupported: {what}")]
    Unsupported {
        /// What.
        what: String,
    },
}

fn in_module(module: &Option<String>) -> String {
    module
        .as_ref()
        .map(|m| format!(" in module {m}"))
        .unwrap_or_default()
}

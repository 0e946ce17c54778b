//! The dead kernel's types by name: vmlinux's first, then those of each module.

mod members;

use std::collections::HashMap;
use std::sync::{Arc, RwLock};

use super::btf::{Btf, Sort, Type};

/// Typedefs and qualifiers in a row; no kernel comes near.
const MAX_ALIASES: usize = 64;
/// Anonymous structures and unions inside one another.
const MAX_NESTING: usize = 32;

/// A type in some blob of BTF, or a pointer to one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct TypeId {
    /// 0 for vmlinux, else one more than the module's index.
    blob: u32,
    number: u32,
    /// How many pointers stand before the type.
    pointers: u8,
}

/// A place inside a larger one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    /// Bytes.
    pub(super) offset: u64,
    pub(super) ty: TypeId,
    pub(super) bits: Option<Bits>,
}

/// A bitfield: `len` bits from bit `start` of the byte it is placed at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bits {
    pub(super) start: u8,
    pub(super) len: u8,
}

/// What a type is, its typedefs and qualifiers taken off.
#[derive(Clone, Copy, Debug)]
pub(super) enum Shape {
    Void,
    Scalar {
        size: u32,
        signed: bool,
    },
    Float {
        size: u32,
    },
    Pointer(TypeId),
    Array {
        element: TypeId,
        count: u64,
    },
    Record {
        size: u32,
    },
    /// Declared here, defined nowhere in the dump's BTF.
    Incomplete,
    Other,
}

/// A blob of BTF and whose it is.
pub(super) struct Blob {
    pub(super) module: String,
    pub(super) btf: Arc<Btf>,
}

/// All types.
pub(super) struct Types {
    blobs: Vec<Blob>,
    members: RwLock<HashMap<TypeId, HashMap<Box<str>, Place>>>,
}

impl Types {
    pub(super) fn new(vmlinux: Blob) -> Types {
        Types {
            blobs: vec![vmlinux],
            members: RwLock::default(),
        }
    }

    /// Adds a module's, split from vmlinux's.
    pub(super) fn add(&mut self, module: Blob) {
        self.blobs.push(module);
    }

    /// vmlinux's own.
    pub(super) fn vmlinux(&self) -> Arc<Btf> {
        Arc::clone(&self.blobs[0].btf)
    }

    /// Finds a type by its C name: "task_struct", "struct page", "u64", "unsigned long", "void",
    /// each with any number of `*` behind. `near` is looked in first, then vmlinux, then the
    /// modules in the order they are linked in the kernel's list.
    pub(super) fn find(&self, name: &str, near: Option<TypeId>) -> Option<TypeId> {
        let near = near.map(|ty| ty.blob).filter(|&blob| blob != 0);
        let order = near.into_iter().chain(0..self.blobs.len() as u32);
        self.find_among(name, order)
    }

    /// Finds a type that a module defines, or that its BTF refers to in vmlinux's.
    pub(super) fn find_in(&self, module: &str, name: &str) -> Option<TypeId> {
        let index = self.blobs.iter().position(|blob| blob.module == module)? as u32;
        self.find_among(name, [index, 0].into_iter())
    }

    fn find_among(&self, name: &str, blobs: impl Iterator<Item = u32>) -> Option<TypeId> {
        let bare = name.trim_end_matches(['*', ' ']);
        let pointers = u8::try_from(name.matches('*').count()).ok()?;
        let (wanted, bare) = match bare.split_once(' ') {
            Some(("struct", rest)) => (Some(Sort::Struct), rest),
            Some(("union", rest)) => (Some(Sort::Union), rest),
            Some(("enum", rest)) => (Some(Sort::Enum), rest),
            _ => (None, bare),
        };
        // The names under which compilers enter C's own types.
        let bare = match bare.trim() {
            "void" => {
                return Some(TypeId {
                    blob: 0,
                    number: 0,
                    pointers,
                });
            }
            "bool" => "_Bool",
            "unsigned" => "unsigned int",
            "short" => "short int",
            "unsigned short" => "short unsigned int",
            "long" => "long int",
            "unsigned long" => "long unsigned int",
            "long long" => "long long int",
            "unsigned long long" => "long long unsigned int",
            other => other,
        };
        for blob in blobs {
            let found = self
                .blobs
                .get(blob as usize)?
                .btf
                .find(bare.as_bytes())
                .filter(|(sort, _)| wanted.is_none_or(|wanted| *sort == wanted))
                .min();
            if let Some((_, number)) = found {
                return Some(TypeId {
                    blob,
                    number,
                    pointers,
                });
            }
        }
        None
    }

    /// A reference that stands in blob `from`: to vmlinux if the number is below the blob's own.
    fn refer(&self, from: u32, number: u32) -> TypeId {
        let own = self
            .blobs
            .get(from as usize)
            .is_some_and(|blob| number >= blob.btf.first_type());
        TypeId {
            blob: if own { from } else { 0 },
            number,
            pointers: 0,
        }
    }

    fn get(&self, ty: TypeId) -> Option<Type<'_>> {
        if ty.number == 0 {
            return Some(Type::Void);
        }
        self.blobs.get(ty.blob as usize)?.btf.get(ty.number)
    }

    /// Takes typedefs and qualifiers off, and finds the definition of what is only declared.
    fn resolve(&self, mut ty: TypeId) -> Option<(TypeId, Type<'_>)> {
        for _ in 0..MAX_ALIASES {
            match self.get(ty)? {
                Type::Alias(number) => ty = self.refer(ty.blob, number),
                forward @ Type::Forward { union } => {
                    // Defined in another blob: vmlinux declares `struct kvm`, kvm.ko defines it.
                    let word = if union { "union" } else { "struct" };
                    let name = format!("{word} {}", self.bare_name(ty));
                    return match self.find(&name, Some(ty)) {
                        Some(defined) => Some((defined, self.get(defined)?)),
                        None => Some((ty, forward)),
                    };
                }
                other => return Some((ty, other)),
            }
        }
        None
    }

    /// What `ty` is.
    pub(super) fn shape(&self, ty: TypeId) -> Shape {
        if ty.pointers > 0 {
            return Shape::Pointer(TypeId {
                pointers: ty.pointers - 1,
                ..ty
            });
        }
        let Some((id, ty)) = self.resolve(ty) else {
            return Shape::Other;
        };
        match ty {
            Type::Void => Shape::Void,
            Type::Int { size, signed, .. } => Shape::Scalar { size, signed },
            Type::Enum(enumeration) => Shape::Scalar {
                size: enumeration.size,
                signed: enumeration.signed,
            },
            Type::Pointer(number) => Shape::Pointer(self.refer(id.blob, number)),
            Type::Array { element, count } => Shape::Array {
                element: self.refer(id.blob, element),
                count: u64::from(count),
            },
            Type::Record(record) => Shape::Record { size: record.size },
            Type::Forward { .. } => Shape::Incomplete,
            Type::Float { size } => Shape::Float { size },
            Type::Alias(_) | Type::Other => Shape::Other,
        }
    }

    /// Bytes. 0 for void and for what is only declared.
    pub(super) fn size(&self, ty: TypeId) -> u64 {
        let mut ty = ty;
        let mut factor = 1u64;
        for _ in 0..MAX_NESTING {
            let size = match self.shape(ty) {
                Shape::Scalar { size, .. } | Shape::Float { size } | Shape::Record { size } => {
                    u64::from(size)
                }
                Shape::Pointer(_) => 8,
                Shape::Array { element, count } => {
                    factor = factor.saturating_mul(count);
                    ty = element;
                    continue;
                }
                Shape::Void | Shape::Incomplete | Shape::Other => 0,
            };
            return size.saturating_mul(factor);
        }
        0
    }

    /// The type as C would write it, for messages.
    pub(super) fn name(&self, ty: TypeId) -> String {
        let mut suffix = "*".repeat(usize::from(ty.pointers));
        let mut ty = TypeId { pointers: 0, ..ty };
        for _ in 0..MAX_ALIASES {
            let name = self.bare_name(ty);
            match self.get(ty) {
                Some(Type::Void) => return format!("void{}", spaced(&suffix)),
                Some(Type::Pointer(number)) => {
                    suffix.insert(0, '*');
                    ty = self.refer(ty.blob, number);
                }
                Some(Type::Array { element, count }) => {
                    suffix.push_str(&format!("[{count}]"));
                    ty = self.refer(ty.blob, element);
                }
                Some(Type::Alias(number)) if name.is_empty() => {
                    ty = self.refer(ty.blob, number);
                }
                Some(found) => {
                    let word = match found {
                        Type::Record(record) if record.union => "union ",
                        Type::Forward { union: true } => "union ",
                        Type::Record(_) | Type::Forward { .. } => "struct ",
                        Type::Enum(_) => "enum ",
                        _ => "",
                    };
                    let name = if name.is_empty() {
                        "(anonymous)"
                    } else {
                        &name
                    };
                    return format!("{word}{name}{}", spaced(&suffix));
                }
                None => break,
            }
        }
        "(damaged type)".into()
    }

    /// The name that the type itself has in BTF; empty for none.
    fn bare_name(&self, ty: TypeId) -> String {
        self.blobs
            .get(ty.blob as usize)
            .and_then(|blob| blob.btf.string(blob.btf.name(ty.number)))
            .map(|name| String::from_utf8_lossy(name).into_owned())
            .unwrap_or_default()
    }

    /// Value of the enumerator `name`, of the enumeration `of` or, when that is empty, of any.
    pub(super) fn enumerator(&self, of: &str, name: &str) -> Option<i64> {
        let value_in = |blob: &Blob, number: u32| {
            let Some(Type::Enum(enumeration)) = blob.btf.get(number) else {
                return None;
            };
            enumeration
                .values()
                .find(|(at, _)| blob.btf.string(*at) == Some(name.as_bytes()))
                .map(|(_, value)| value)
        };
        if of.is_empty() {
            return self
                .blobs
                .iter()
                .find_map(|blob| blob.btf.numbers().find_map(|number| value_in(blob, number)));
        }
        let (id, _) = self.resolve(self.find(of, None)?)?;
        value_in(self.blobs.get(id.blob as usize)?, id.number)
    }
}

fn spaced(suffix: &str) -> String {
    if suffix.is_empty() || suffix.starts_with('[') {
        suffix.to_owned()
    } else {
        format!(" {suffix}")
    }
}

//! A typed place in the dead kernel's memory.

use std::fmt;

use super::types::{Bits, Shape, TypeId};
use super::{Kernel, KernelError};

/// The longest string that [`Object::string`] follows a `char *` for: a path may have 4096 bytes.
const MAX_STRING: usize = 4096;
/// The largest object that is read at once. A kernel's largest are some MB (`pglist_data`, `kvm`).
const MAX_BYTES: u64 = 1 << 28;

/// A typed place in the dead kernel's memory: a type and an address.
///
/// Making one reads nothing, and a pointer is never followed in silence: [`get`](Object::get) stays
/// within the object, [`deref`](Object::deref) and [`follow`](Object::follow) leave it.
#[derive(Clone)]
pub struct Object<'k> {
    kernel: &'k Kernel,
    addr: u64,
    ty: TypeId,
    bits: Option<Bits>,
}

impl<'k> Object<'k> {
    pub(super) fn new(kernel: &'k Kernel, addr: u64, ty: TypeId) -> Object<'k> {
        Object {
            kernel,
            addr,
            ty,
            bits: None,
        }
    }

    /// The kernel it is in.
    #[must_use]
    pub fn kernel(&self) -> &'k Kernel {
        self.kernel
    }

    /// Kernel virtual address. A bitfield's is that of its first byte.
    #[must_use]
    pub fn addr(&self) -> u64 {
        self.addr
    }

    /// Bytes that the type takes, by BTF. 0 for void and for flexible arrays.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.kernel.types().size(self.ty)
    }

    /// The type as C writes it, for messages: "struct mm_struct *".
    #[must_use]
    pub fn type_name(&self) -> String {
        self.kernel.types().name(self.ty)
    }

    /// The member or element at `path`, such as "thread.fpu", "slots\[3\]" or "a.b\[2\].c".
    ///
    /// Goes through anonymous structures and unions by itself, and through no pointer. An index is
    /// checked, unless the array is flexible.
    pub fn get(&self, path: &str) -> Result<Object<'k>, KernelError> {
        let place = self.kernel.types().place(self.ty, path)?;
        Ok(Object {
            kernel: self.kernel,
            addr: self.addr.wrapping_add(place.offset),
            ty: place.ty,
            bits: place.bits,
        })
    }

    /// Whether there is such a member.
    #[must_use]
    pub fn has(&self, path: &str) -> bool {
        self.kernel.types().place(self.ty, path).is_ok()
    }

    /// The value of an integer, enumeration, bool, pointer or bitfield of up to 64 bits, its upper
    /// bits zero: a 32-bit -1 is 0xffffffff.
    pub fn unsigned(&self) -> Result<u64, KernelError> {
        Ok(self.scalar()?.0)
    }

    /// The same, with the sign that the type has: a `u32` stays positive.
    pub fn signed(&self) -> Result<i64, KernelError> {
        let (value, width, signed) = self.scalar()?;
        if signed && width < 64 {
            let unused = 64 - width;
            Ok((value << unused).cast_signed() >> unused)
        } else {
            Ok(value.cast_signed())
        }
    }

    /// Raw value, its width in bits, and whether the type is signed.
    fn scalar(&self) -> Result<(u64, u32, bool), KernelError> {
        let (size, signed) = match self.kernel.types().shape(self.ty) {
            Shape::Scalar { size, signed } if (1..=8).contains(&size) => (size, signed),
            Shape::Pointer(_) => (8, false),
            _ => return Err(self.wrong("an integer, enumeration or pointer of up to 64 bits")),
        };
        let (start, len) = match self.bits {
            Some(bits) if bits.len <= 64 => (u32::from(bits.start), u32::from(bits.len)),
            Some(_) => return Err(self.wrong("a bitfield of up to 64 bits")),
            None => (0, size * 8),
        };
        // Up to 7 + 64 bits: nine bytes.
        let bytes = (start + len).div_ceil(8) as usize;
        let mut raw = [0; 16];
        self.kernel.read(self.addr, &mut raw[..bytes])?;
        let value = u128::from_le_bytes(raw) >> start;
        let mask = if len == 64 { u64::MAX } else { (1 << len) - 1 };
        Ok((value as u64 & mask, len, signed))
    }

    /// `get(path)?.unsigned()`
    pub fn u(&self, path: &str) -> Result<u64, KernelError> {
        self.get(path)?.unsigned()
    }

    /// `get(path)?.signed()`
    pub fn i(&self, path: &str) -> Result<i64, KernelError> {
        self.get(path)?.signed()
    }

    /// The value of a pointer, not followed.
    pub fn ptr(&self, path: &str) -> Result<u64, KernelError> {
        let pointer = self.get(path)?;
        match self.kernel.types().shape(pointer.ty) {
            Shape::Pointer(_) => pointer.unsigned(),
            _ => Err(pointer.wrong("a pointer")),
        }
    }

    /// What a pointer points to. Null is an error. Of `void *` the result has no size, and is there
    /// to be [`cast`](Self::cast).
    pub fn deref(&self) -> Result<Object<'k>, KernelError> {
        match self.deref_opt()? {
            Some(pointee) => Ok(pointee),
            None => Err(KernelError::Null {
                ty: self.type_name(),
                addr: self.addr,
            }),
        }
    }

    fn deref_opt(&self) -> Result<Option<Object<'k>>, KernelError> {
        let Shape::Pointer(pointee) = self.kernel.types().shape(self.ty) else {
            return Err(self.wrong("a pointer"));
        };
        let addr = self.unsigned()?;
        Ok((addr != 0).then(|| Object::new(self.kernel, addr, pointee)))
    }

    /// `get(path)?.deref()`
    pub fn follow(&self, path: &str) -> Result<Object<'k>, KernelError> {
        self.get(path)?.deref()
    }

    /// `follow`, with `None` for a null pointer.
    pub fn follow_opt(&self, path: &str) -> Result<Option<Object<'k>>, KernelError> {
        self.get(path)?.deref_opt()
    }

    /// The whole object's bytes.
    pub fn bytes(&self) -> Result<Vec<u8>, KernelError> {
        self.read_bytes(self.size())
    }

    /// `len` bytes from the object's address on, whatever its type: for what trails it.
    pub fn read_bytes(&self, len: u64) -> Result<Vec<u8>, KernelError> {
        let len = match usize::try_from(len) {
            Ok(fits) if len <= MAX_BYTES => fits,
            _ => return Err(self.wrong("small enough to read at once (256 MiB)")),
        };
        let mut bytes = vec![0; len];
        self.kernel.read(self.addr, &mut bytes)?;
        Ok(bytes)
    }

    /// A C string: of an array of char, up to its end or the first zero; of a pointer, what it
    /// points to, up to 4096 bytes. Bytes that are no UTF-8 are replaced.
    pub fn string(&self) -> Result<String, KernelError> {
        match self.kernel.types().shape(self.ty) {
            Shape::Array { count, .. } if count != 0 => {
                let mut bytes = self.bytes()?;
                if let Some(end) = bytes.iter().position(|&byte| byte == 0) {
                    bytes.truncate(end);
                }
                Ok(String::from_utf8_lossy(&bytes).into_owned())
            }
            // A flexible array of char, such as `dentry`'s longer names or `struct filename.iname`.
            Shape::Array { .. } => self.kernel.read_cstr(self.addr, MAX_STRING),
            Shape::Pointer(_) => self.kernel.read_cstr(self.deref()?.addr, MAX_STRING),
            _ => Err(self.wrong("an array of char or a pointer to char")),
        }
    }

    /// The same address as another type.
    pub fn cast(&self, ty: &str) -> Result<Object<'k>, KernelError> {
        let ty = self.kernel.find_type(ty, Some(self.ty))?;
        Ok(Object::new(self.kernel, self.addr, ty))
    }

    /// The structure of type `ty` whose member at path `member` this is.
    pub fn container_of(&self, ty: &str, member: &str) -> Result<Object<'k>, KernelError> {
        let ty = self.kernel.find_type(ty, Some(self.ty))?;
        let place = self.kernel.types().place(ty, member)?;
        Ok(Object::new(
            self.kernel,
            self.addr.wrapping_sub(place.offset),
            ty,
        ))
    }

    /// Element `i` of an array; unchecked if the array is flexible. Of a pointer, the element `i` of
    /// the array that it points to, which nothing bounds.
    pub fn element(&self, i: u64) -> Result<Object<'k>, KernelError> {
        let types = self.kernel.types();
        let (base, element) = match types.shape(self.ty) {
            Shape::Array { element, count } => {
                if count != 0 && i >= count {
                    return Err(KernelError::OutOfBounds {
                        ty: self.type_name(),
                        path: format!("[{i}]"),
                        index: i,
                        len: count,
                    });
                }
                (self.addr, element)
            }
            Shape::Pointer(element) => (self.deref()?.addr, element),
            _ => return Err(self.wrong("an array or a pointer")),
        };
        let addr = i
            .checked_mul(types.size(element))
            .and_then(|offset| base.checked_add(offset))
            .ok_or_else(|| self.wrong("large enough for that index"))?;
        Ok(Object::new(self.kernel, addr, element))
    }

    /// Elements of an array, by BTF; 0 if it is flexible. `None` if this is no array.
    #[must_use]
    pub fn array_len(&self) -> Option<u64> {
        match self.kernel.types().shape(self.ty) {
            Shape::Array { count, .. } => Some(count),
            _ => None,
        }
    }

    fn wrong(&self, wanted: &'static str) -> KernelError {
        KernelError::WrongKind {
            ty: self.type_name(),
            addr: self.addr,
            wanted,
        }
    }
}

impl fmt::Debug for Object<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {:#x}", self.type_name(), self.addr)
    }
}

/// Equal if they are the same place, seen as the same type.
impl PartialEq for Object<'_> {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self.kernel, other.kernel)
            && (self.addr, self.ty, self.bits) == (other.addr, other.ty, other.bits)
    }
}

//! BTF: the type information that a kernel and each of its modules carry in their own memory.
//!
//! One [`Btf`] is one such blob. It is kept as it stands in the dump, with an offset for each type
//! and a sorted hash of the names; a type is decoded when it is asked for. That costs a few
//! milliseconds for vmlinux's 4 MB, where a parser that builds every type as an object takes twenty
//! times as long and as much memory, and it makes hostile input simple: every access is one bounds
//! check away from an error.
//!
//! Linux Documentation/bpf/btf.rst, include/uapi/linux/btf.h.

use std::sync::Arc;

use super::kallsyms::hash;

const MAGIC: u16 = 0xeb9f;
const HEADER_LEN: usize = 24;
/// The kernel's KSYM_NAME_LEN. Without a bound, a million types that share one name of a megabyte
/// would take hours to go over.
const MAX_NAME: usize = 512;

/// One type as BTF tells it. References are type numbers as they stand in the blob.
#[derive(Clone, Copy, Debug)]
pub(super) enum Type<'b> {
    /// Number 0, and what `void *` points to.
    Void,
    Int {
        size: u32,
        signed: bool,
        /// A bitfield in the old style: bits of the integer that count, and where they start.
        bits: u8,
        bit_offset: u8,
    },
    Pointer(u32),
    Array {
        element: u32,
        count: u32,
    },
    /// Structure or union.
    Record(Record<'b>),
    Enum(Enum<'b>),
    /// A structure or union that is declared here and defined elsewhere.
    Forward {
        union: bool,
    },
    /// Typedef, const, volatile, restrict or type tag.
    Alias(u32),
    Float {
        size: u32,
    },
    /// A function, variable, section or tag: nothing that stands in memory as a value.
    Other,
}

/// A structure or union.
#[derive(Clone, Copy, Debug)]
pub(super) struct Record<'b> {
    pub(super) union: bool,
    pub(super) size: u32,
    bitfield_sizes: bool,
    members: &'b [u8],
}

/// A member of a [`Record`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Member {
    /// Offset of the name in the strings; 0 for an anonymous member.
    pub(super) name: u32,
    pub(super) ty: u32,
    pub(super) bit_offset: u32,
    /// 0 when it is no bitfield (or one in the old style, where the type says so).
    pub(super) bitfield_bits: u8,
}

impl<'b> Record<'b> {
    pub(super) fn members(&self) -> impl Iterator<Item = Member> + use<'b> {
        let bitfield_sizes = self.bitfield_sizes;
        self.members.chunks_exact(12).map(move |raw| {
            let place = le32(&raw[8..]);
            let (bit_offset, bitfield_bits) = if bitfield_sizes {
                (place & 0x00ff_ffff, (place >> 24) as u8)
            } else {
                (place, 0)
            };
            Member {
                name: le32(raw),
                ty: le32(&raw[4..]),
                bit_offset,
                bitfield_bits,
            }
        })
    }
}

/// An enumeration, of 32-bit or 64-bit values.
#[derive(Clone, Copy, Debug)]
pub(super) struct Enum<'b> {
    pub(super) size: u32,
    pub(super) signed: bool,
    wide: bool,
    values: &'b [u8],
}

impl<'b> Enum<'b> {
    /// Offset of each name in the strings, and its value.
    pub(super) fn values(&self) -> impl Iterator<Item = (u32, i64)> + use<'b> {
        let (signed, wide) = (self.signed, self.wide);
        self.values
            .chunks_exact(if wide { 12 } else { 8 })
            .map(move |raw| {
                let low = le32(&raw[4..]);
                let value = if wide {
                    (u64::from(le32(&raw[8..])) << 32 | u64::from(low)).cast_signed()
                } else if signed {
                    i64::from(low.cast_signed())
                } else {
                    i64::from(low)
                };
                (le32(raw), value)
            })
    }
}

/// What a name may stand for; [`Btf::find`] prefers them in this order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Sort {
    Struct,
    Union,
    Typedef,
    Enum,
    Scalar,
}

/// One blob of BTF: vmlinux's, or a module's, whose type numbers and string offsets go on where
/// vmlinux's end ("split BTF").
pub(super) struct Btf {
    data: Vec<u8>,
    /// vmlinux's, for a module's.
    base: Option<Arc<Btf>>,
    strings: std::ops::Range<usize>,
    first_type: u32,
    first_string: u32,
    /// Offset in `data` of each type, from number `first_type`.
    types: Vec<u32>,
    /// Hash of the name (high half) and type number (low half), sorted.
    by_name: Vec<u64>,
}

impl Btf {
    /// Parses a blob: vmlinux's, or with `base` a module's. An error is one sentence with its
    /// numbers.
    pub(super) fn parse(data: Vec<u8>, base: Option<Arc<Btf>>) -> Result<Btf, String> {
        let (first_type, first_string) = base
            .as_ref()
            .map_or((1, 0), |base| (base.end_type(), base.end_string()));
        if data.len() < HEADER_LEN {
            return Err(format!("{} bytes are too short for its header", data.len()));
        }
        let magic = u16::from_le_bytes([data[0], data[1]]);
        if magic != MAGIC || data[2] != 1 {
            return Err(format!(
                "magic {magic:#x} version {}, expected {MAGIC:#x} version 1",
                data[2]
            ));
        }
        let header_len = le32(&data[4..]) as usize;
        let section = |at: usize, name: &str| {
            let start = header_len.checked_add(le32(&data[at..]) as usize);
            let end = start.and_then(|start| start.checked_add(le32(&data[at + 4..]) as usize));
            match (start, end) {
                (Some(start), Some(end)) if header_len >= HEADER_LEN && end <= data.len() => {
                    Ok(start..end)
                }
                _ => Err(format!(
                    "its {name} lie outside its {} bytes (header of {header_len})",
                    data.len()
                )),
            }
        };
        let (types_at, strings) = (section(8, "types")?, section(16, "strings")?);
        let mut btf = Btf {
            strings,
            first_type,
            first_string,
            types: Vec::with_capacity(types_at.len() / 24),
            by_name: Vec::with_capacity(types_at.len() / 96),
            data,
            base,
        };
        let mut at = types_at.start;
        while at < types_at.end {
            let length = btf
                .type_len(at)
                .filter(|length| at + length <= types_at.end)
                .ok_or_else(|| {
                    format!(
                        "type {} at offset {at:#x} is of unknown kind or cut short",
                        first_type as usize + btf.types.len()
                    )
                })?;
            let number = u32::try_from(btf.types.len())
                .ok()
                .and_then(|index| first_type.checked_add(index))
                .ok_or("it has more than 4 billion types")?;
            let at32 = u32::try_from(at).map_err(|_| "it is larger than 4 GiB".to_owned())?;
            btf.types.push(at32);
            if btf.sort_at(at).is_some()
                && let Some(name) = btf.string(le32(&btf.data[at..]))
                && !name.is_empty()
            {
                let hash = hash(name);
                btf.by_name.push(u64::from(hash) << 32 | u64::from(number));
            }
            at += length;
        }
        btf.by_name.sort_unstable();
        Ok(btf)
    }

    /// The number that follows this blob's last type.
    pub(super) fn end_type(&self) -> u32 {
        // `parse` checked that each number fits.
        self.first_type.saturating_add(self.types.len() as u32)
    }

    /// The string offset that follows this blob's last string.
    pub(super) fn end_string(&self) -> u32 {
        self.first_string
            .saturating_add(u32::try_from(self.strings.len()).unwrap_or(u32::MAX))
    }

    /// The number of this blob's first type.
    pub(super) fn first_type(&self) -> u32 {
        self.first_type
    }

    /// The string at an offset; none if it is longer than any name. A module's types are named by strings of vmlinux where it has them.
    pub(super) fn string(&self, offset: u32) -> Option<&[u8]> {
        let Some(at) = offset.checked_sub(self.first_string) else {
            return self.base.as_ref()?.string(offset);
        };
        let text = self.data[self.strings.clone()].get(at as usize..)?;
        let len = text.iter().take(MAX_NAME).position(|&byte| byte == 0)?;
        Some(&text[..len])
    }

    /// Offset of the name of type `number`, in the strings; 0 if it has none.
    pub(super) fn name(&self, number: u32) -> u32 {
        self.offset_of(number)
            .map_or(0, |at| le32(&self.data[at..]))
    }

    /// This blob's own types named `name`, with their sort, in order of number.
    pub(super) fn find<'s>(&'s self, name: &'s [u8]) -> impl Iterator<Item = (Sort, u32)> + 's {
        let hash = u64::from(hash(name));
        let first = self.by_name.partition_point(|entry| entry >> 32 < hash);
        self.by_name[first..]
            .iter()
            .take_while(move |entry| *entry >> 32 == hash)
            .map(|entry| (entry & 0xffff_ffff) as u32)
            .filter_map(move |number| {
                let at = self.offset_of(number)?;
                (self.string(le32(&self.data[at..]))? == name)
                    .then(|| Some((self.sort_at(at)?, number)))?
            })
    }

    /// Numbers of all types here.
    pub(super) fn numbers(&self) -> std::ops::Range<u32> {
        self.first_type..self.end_type()
    }

    /// Decodes type `number`, which must be one of this blob's own. `None` if there is none such.
    pub(super) fn get(&self, number: u32) -> Option<Type<'_>> {
        let at = self.offset_of(number)?;
        let header = Header::read(&self.data, at)?;
        let rest = self.data.get(at + 12..at + self.type_len(at)?)?;
        Some(match header.kind {
            1 => {
                let encoding = le32(rest);
                Type::Int {
                    size: header.size_or_type,
                    signed: encoding >> 24 & 1 != 0,
                    bits: encoding as u8,
                    bit_offset: (encoding >> 16) as u8,
                }
            }
            2 => Type::Pointer(header.size_or_type),
            3 => Type::Array {
                element: le32(rest),
                count: le32(&rest[8..]),
            },
            kind @ (4 | 5) => Type::Record(Record {
                union: kind == 5,
                size: header.size_or_type,
                bitfield_sizes: header.flag,
                members: rest,
            }),
            kind @ (6 | 19) => Type::Enum(Enum {
                size: header.size_or_type,
                signed: header.flag,
                wide: kind == 19,
                values: rest,
            }),
            7 => Type::Forward { union: header.flag },
            8..=11 | 18 => Type::Alias(header.size_or_type),
            16 => Type::Float {
                size: header.size_or_type,
            },
            _ => Type::Other,
        })
    }

    fn offset_of(&self, number: u32) -> Option<usize> {
        let index = number.checked_sub(self.first_type)? as usize;
        self.types.get(index).map(|&at| at as usize)
    }

    /// Bytes that the type at offset `at` takes; none when the kind is unknown.
    fn type_len(&self, at: usize) -> Option<usize> {
        let header = Header::read(&self.data, at)?;
        let vlen = header.vlen as usize;
        let rest = match header.kind {
            // pointer, forward, typedef, volatile, const, restrict, function, float, type tag
            2 | 7..=12 | 16 | 18 => 0,
            // integer, variable, declaration tag
            1 | 14 | 17 => 4,
            3 => 12,
            // structure, union, section, 64-bit enumeration
            4 | 5 | 15 | 19 => vlen.checked_mul(12)?,
            // enumeration, function prototype
            6 | 13 => vlen.checked_mul(8)?,
            _ => return None,
        };
        rest.checked_add(12)
    }

    /// What the type at `at` can be looked up as.
    fn sort_at(&self, at: usize) -> Option<Sort> {
        match Header::read(&self.data, at)?.kind {
            4 => Some(Sort::Struct),
            5 => Some(Sort::Union),
            8 => Some(Sort::Typedef),
            6 | 19 => Some(Sort::Enum),
            1 | 16 => Some(Sort::Scalar),
            _ => None,
        }
    }
}

/// `struct btf_type`: 12 bytes.
struct Header {
    kind: u32,
    vlen: u32,
    flag: bool,
    size_or_type: u32,
}

impl Header {
    fn read(data: &[u8], at: usize) -> Option<Header> {
        let raw = data.get(at..at.checked_add(12)?)?;
        let info = le32(&raw[4..]);
        Some(Header {
            // 5 bits of kind and 16 of length once; the bits between, long unused, extend them.
            kind: info >> 24 & 0x7f,
            vlen: info & 0x00ff_ffff,
            flag: info >> 31 != 0,
            size_or_type: le32(&raw[8..]),
        })
    }
}

/// The first four bytes. Callers have checked that they are there.
fn le32(bytes: &[u8]) -> u32 {
    u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

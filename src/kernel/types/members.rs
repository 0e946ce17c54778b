//! Members of a type by their names, and elements by their numbers.

use super::{Bits, MAX_NESTING, Place, Shape, TypeId, Types};
use crate::kernel::KernelError;
use crate::kernel::btf::Type;

/// Members looked at to find one; `task_struct` has about 250.
const MAX_MEMBERS: usize = 1 << 20;

impl Types {
    /// Where `path` leads from a value of type `ty`: members by name, through anonymous structures
    /// and unions, and elements by `[index]`. Never through a pointer.
    pub(in crate::kernel) fn place(&self, ty: TypeId, path: &str) -> Result<Place, KernelError> {
        // Paths with an index are as many as there are indices: too many to keep.
        let keep = !path.contains('[');
        if keep
            && let Ok(members) = self.members.read()
            && let Some(place) = members.get(&ty).and_then(|paths| paths.get(path))
        {
            return Ok(*place);
        }
        let place = self.find_place(ty, path)?;
        if keep && let Ok(mut members) = self.members.write() {
            members.entry(ty).or_default().insert(path.into(), place);
        }
        Ok(place)
    }

    fn find_place(&self, start: TypeId, path: &str) -> Result<Place, KernelError> {
        let no_member = || KernelError::NoMember {
            ty: self.name(start),
            path: path.to_owned(),
        };
        let mut place = Place {
            offset: 0,
            ty: start,
            bits: None,
        };
        for step in steps(path) {
            let next = match step {
                Step::Member(name) => self.member(place.ty, name).ok_or_else(no_member)?,
                Step::Index(index) => {
                    let Shape::Array { element, count } = self.shape(place.ty) else {
                        return Err(no_member());
                    };
                    // A flexible array member has no count: what bounds it, the caller knows.
                    if count != 0 && index >= count {
                        return Err(KernelError::OutOfBounds {
                            ty: self.name(start),
                            path: path.to_owned(),
                            index,
                            len: count,
                        });
                    }
                    Place {
                        offset: index
                            .checked_mul(self.size(element))
                            .ok_or_else(no_member)?,
                        ty: element,
                        bits: None,
                    }
                }
                Step::Malformed => return Err(no_member()),
            };
            place = Place {
                offset: place
                    .offset
                    .checked_add(next.offset)
                    .ok_or_else(no_member)?,
                ..next
            };
        }
        Ok(place)
    }

    /// A member by its name.
    fn member(&self, ty: TypeId, name: &str) -> Option<Place> {
        if ty.pointers > 0 {
            return None;
        }
        let mut budget = MAX_MEMBERS;
        self.member_within(ty, name.as_bytes(), 0, MAX_NESTING, &mut budget)
    }

    fn member_within(
        &self,
        ty: TypeId,
        name: &[u8],
        base_bits: u64,
        nesting: usize,
        budget: &mut usize,
    ) -> Option<Place> {
        let (id, Type::Record(record)) = self.resolve(ty)? else {
            return None;
        };
        let btf = &self.blobs.get(id.blob as usize)?.btf;
        for member in record.members() {
            *budget = budget.checked_sub(1)?;
            let ty = self.refer(id.blob, member.ty);
            let at_bits = base_bits + u64::from(member.bit_offset);
            if member.name == 0 {
                if nesting > 0
                    && let Some(place) = self.member_within(ty, name, at_bits, nesting - 1, budget)
                {
                    return Some(place);
                }
            } else if btf.string(member.name) == Some(name) {
                return Some(self.member_place(ty, at_bits, member.bitfield_bits));
            }
        }
        None
    }

    fn member_place(&self, ty: TypeId, at_bits: u64, bitfield_bits: u8) -> Place {
        let (at_bits, len) = match (bitfield_bits, self.resolve(ty)) {
            // A bitfield in the old style: an integer type of fewer bits than its bytes hold.
            (
                0,
                Some((
                    _,
                    Type::Int {
                        size,
                        bits,
                        bit_offset,
                        ..
                    },
                )),
            ) if u32::from(bits) != size.saturating_mul(8) && bits != 0 => {
                (at_bits + u64::from(bit_offset), bits)
            }
            (len, _) => (at_bits, len),
        };
        Place {
            offset: at_bits / 8,
            ty,
            bits: (len != 0).then_some(Bits {
                start: (at_bits % 8) as u8,
                len,
            }),
        }
    }
}

enum Step<'p> {
    Member(&'p str),
    Index(u64),
    Malformed,
}

/// Cuts "a.b\[2\].c" into its steps.
fn steps(path: &str) -> impl Iterator<Item = Step<'_>> {
    let mut rest = path;
    let mut first = true;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        if let Some(inner) = rest.strip_prefix('[') {
            first = false;
            let Some((index, after)) = inner.split_once(']') else {
                rest = "";
                return Some(Step::Malformed);
            };
            rest = after;
            return Some(index.trim().parse().map_or(Step::Malformed, Step::Index));
        }
        let name = if first {
            rest
        } else {
            rest.strip_prefix('.').unwrap_or("")
        };
        first = false;
        let len = name.find(['.', '[']).unwrap_or(name.len());
        let (name, after) = name.split_at(len);
        rest = after;
        if name.is_empty() {
            rest = "";
            return Some(Step::Malformed);
        }
        Some(Step::Member(name))
    })
}

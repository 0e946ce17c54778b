//! Where kallsyms' tables are: by VMCOREINFO, or for kernels before v6.0 by what they look like.
//!
//! VMCOREINFO names the tables since Linux commit 5fd8fea935a1 ("vmcoreinfo: include kallsyms
//! symbols") (in v6.0). Older kernels that are in wide use (5.10, 5.14, 5.15) do not say, but
//! scripts/kallsyms.c gave all of them the same order: offsets, relative base, count, names, markers,
//! token table, token index, each at a multiple of 8.

use super::kallsyms::{MAX_SYMBOLS, ReadImage};
use super::{KernelError, VmcoreInfo};

/// Kernel virtual addresses of the tables.
pub(super) struct Places {
    pub(super) count: u64,
    pub(super) names: u64,
    pub(super) token_table: u64,
    pub(super) token_index: u64,
    pub(super) offsets: Option<u64>,
    pub(super) relative_base: Option<u64>,
    pub(super) addresses: Option<u64>,
}

/// Code and read-only data of a kernel take 20 to 60 MB.
const MAX_IMAGE: u64 = 128 << 20;
/// The copy of them grows by this much, not by doubling.
const GROWTH: usize = 8 << 20;
const PAGE: usize = 4096;
/// A token is at most as long as a symbol.
const MAX_TOKEN: usize = 1024;
/// Names gone over in all the places that look like the tables' begin, of which an image made to
/// harm has millions.
const MAX_NAMES_SEEN: usize = 1 << 26;
/// A kernel's own symbols: fewer or more are something else that looks similar.
const COUNTS: std::ops::RangeInclusive<u32> = 16..=MAX_SYMBOLS;

impl Places {
    pub(super) fn find(info: &VmcoreInfo, read: ReadImage<'_>) -> Result<Places, KernelError> {
        let need = |name: &str| {
            info.symbol(name)?.ok_or_else(|| KernelError::NoInfo {
                key: format!("SYMBOL({name})"),
            })
        };
        if info.symbol("kallsyms_names")?.is_some() {
            return Ok(Places {
                count: need("kallsyms_num_syms")?,
                names: need("kallsyms_names")?,
                token_table: need("kallsyms_token_table")?,
                token_index: need("kallsyms_token_index")?,
                offsets: info.symbol("kallsyms_offsets")?,
                relative_base: info.symbol("kallsyms_relative_base")?,
                addresses: info.symbol("kallsyms_addresses")?,
            });
        }
        // Read-only data stands between the code and the first variable that the note names.
        let start = need("_stext")?;
        let end = need("init_uts_ns")?;
        let len = end
            .checked_sub(start)
            .filter(|len| *len <= MAX_IMAGE)
            .and_then(|len| usize::try_from(len).ok())
            .ok_or_else(|| KernelError::BadInfo {
                key: "SYMBOL(init_uts_ns)".into(),
                value: format!("{end:x}"),
                wanted: "an address behind _stext, in the kernel's image",
            })?;
        let mut image = Vec::new();
        for at in (0..len).step_by(PAGE) {
            let mut page = [0; PAGE];
            let page = &mut page[..PAGE.min(len - at)];
            // A page that is not there matters only if the tables are on it, and then they are not
            // found. Zeros for it take memory only if something follows.
            if read(start.wrapping_add(at as u64), page).is_ok() {
                if image.capacity() < at + PAGE {
                    image.reserve_exact(at + GROWTH - image.len());
                }
                image.resize(at, 0);
                image.extend_from_slice(page);
            }
        }
        search(&image, start).ok_or_else(|| KernelError::NoInfo {
            key: "SYMBOL(kallsyms_names), and no kallsyms is to be seen in the kernel's image"
                .into(),
        })
    }
}

/// Looks for the tables in the kernel's image, which begins at `start`.
fn search(image: &[u8], start: u64) -> Option<Places> {
    let mut budget = MAX_NAMES_SEEN;
    // The relative base is the lowest address in the table, which is where the code begins.
    let bases = start.saturating_sub(0x20_0000)..=start;
    image
        .chunks_exact(8)
        .enumerate()
        .filter(|(_, word)| {
            bases.contains(
                &word
                    .iter()
                    .rev()
                    .fold(0, |sum, &byte| sum << 8 | u64::from(byte)),
            )
        })
        .find_map(|(index, _)| tables_around(image, start, index * 8, &mut budget))
}

/// The tables, if what stands at `base_at` is kallsyms' relative base.
fn tables_around(image: &[u8], start: u64, base_at: usize, budget: &mut usize) -> Option<Places> {
    let count_at = base_at + 8;
    let count = le32(image, count_at).filter(|count| COUNTS.contains(count))? as usize;
    let offsets_at = base_at.checked_sub((count * 4).next_multiple_of(8))?;

    // Each name begins with its length; a marker says where each 256th is.
    let names_at = count_at + 8;
    let mut cursor = names_at;
    let mut markers = Vec::new();
    for symbol in 0..count {
        *budget = budget.checked_sub(1)?;
        if symbol % 256 == 0 {
            markers.push(u32::try_from(cursor - names_at).ok()?);
        }
        cursor += 1 + usize::from(*image.get(cursor)?);
    }
    let markers_at = cursor.next_multiple_of(8);
    for (index, &marker) in markers.iter().enumerate() {
        if le32(image, markers_at + index * 4)? != marker {
            return None;
        }
    }

    // 256 strings, and an index of where each begins.
    let table_at = (markers_at + markers.len() * 4).next_multiple_of(8);
    let mut cursor = table_at;
    let mut starts = Vec::with_capacity(256);
    for _ in 0..256 {
        starts.push(u16::try_from(cursor - table_at).ok()?);
        let token = image.get(cursor..)?.iter().take(MAX_TOKEN);
        cursor += 1 + token.into_iter().position(|&byte| byte == 0)?;
    }
    let index_at = cursor.next_multiple_of(8);
    for (index, &begin) in starts.iter().enumerate() {
        if image.get(index_at + index * 2..index_at + index * 2 + 2)? != begin.to_le_bytes() {
            return None;
        }
    }
    let addr = |at: usize| start + at as u64;
    Some(Places {
        count: addr(count_at),
        names: addr(names_at),
        token_table: addr(table_at),
        token_index: addr(index_at),
        offsets: Some(addr(offsets_at)),
        relative_base: Some(addr(base_at)),
        addresses: None,
    })
}

fn le32(image: &[u8], at: usize) -> Option<u32> {
    let bytes = image.get(at..at.checked_add(4)?)?;
    Some(u32::from_le_bytes(bytes.try_into().ok()?))
}

//! kallsyms: the symbol table that a kernel carries in its own read-only data.
//!
//! Names are compressed: each is a run of bytes, every byte standing for one of 256 tokens. A name's
//! first character is the symbol's type, as `nm` would print it.
//! Linux kernel/kallsyms.c and scripts/kallsyms.c.

use super::kallsyms_place::Places;
use super::{KernelError, VmcoreInfo};

/// More symbols than any kernel has (a distribution's has 200 000).
pub(super) const MAX_SYMBOLS: u32 = 1 << 21;
const EXPECTED_SYMBOLS: u32 = 1 << 18;
/// KSYM_NAME_LEN is 512, and was 128 before v6.1.
const MAX_NAME: usize = 2048;
/// All names together, expanded (3 MB in a distribution's kernel).
const MAX_NAMES: usize = 1 << 28;
/// All names together, compressed (2.5 MB in a distribution's kernel). Nothing else bounds them:
/// with page tables that lead in circles, all addresses can be read.
const MAX_COMPRESSED: usize = 32 << 20;
const CHUNK: usize = 256 << 10;

/// Reads bytes of the kernel image at a virtual address.
pub(super) type ReadImage<'a> = &'a dyn Fn(u64, &mut [u8]) -> Result<(), KernelError>;

/// vmlinux's own symbols, by name and by address.
///
/// Names stay compressed; each lookup expands the few candidates that a hash leaves.
pub(super) struct Kallsyms {
    tokens: Vec<Vec<u8>>,
    names: Vec<u8>,
    /// Per symbol: its place in `names`, behind the length.
    name_at: Vec<(u32, u16)>,
    addresses: Vec<u64>,
    /// Hash of the name (high half) and symbol (low half), sorted.
    by_name: Vec<u64>,
    /// Symbols, by address.
    by_address: Vec<u32>,
}

impl Kallsyms {
    /// Finds the tables and reads them.
    pub(super) fn read(info: &VmcoreInfo, read: ReadImage<'_>) -> Result<Kallsyms, KernelError> {
        let places = Places::find(info, read)?;
        let count_at = places.count;
        let mut count = [0; 4];
        read(count_at, &mut count)?;
        let count = u32::from_le_bytes(count);
        if count == 0 || count > MAX_SYMBOLS {
            return Err(damaged(count_at, format!("it counts {count} symbols")));
        }

        let tokens = read_tokens(places.token_table, places.token_index, read)?;
        let (names, name_at) = read_names(places.names, count, read)?;
        let mut table = Kallsyms {
            tokens,
            names,
            name_at,
            addresses: Vec::new(),
            by_name: Vec::with_capacity(count as usize),
            by_address: (0..count).collect(),
        };
        let mut name = Vec::new();
        let mut total = 0;
        for symbol in 0..count {
            table.expand(symbol, &mut name);
            total += name.len();
            if name.len() > MAX_NAME || total > MAX_NAMES {
                return Err(damaged(
                    count_at,
                    format!("the name of symbol {symbol} of {count} is too long"),
                ));
            }
            table
                .by_name
                .push(u64::from(hash(&name)) << 32 | u64::from(symbol));
        }
        table.by_name.sort_unstable();
        table.addresses = table.read_addresses(info, &places, count, read)?;
        let addresses = &table.addresses;
        table
            .by_address
            .sort_by_key(|&symbol| addresses[symbol as usize]);
        Ok(table)
    }

    /// Decodes the addresses by whichever of the known encodings puts `_stext` where VMCOREINFO
    /// has it: the encodings differ by kernel configuration, which nothing else reveals.
    fn read_addresses(
        &self,
        info: &VmcoreInfo,
        places: &Places,
        count: u32,
        read: ReadImage<'_>,
    ) -> Result<Vec<u64>, KernelError> {
        let stext = info.symbol("_stext")?.ok_or_else(|| KernelError::NoInfo {
            key: "SYMBOL(_stext)".into(),
        })?;
        let probe = self
            .find_all("_stext")
            .next()
            .ok_or_else(|| damaged(stext, "no symbol is named _stext".into()))?
            as usize;

        // Absolute addresses: CONFIG_KALLSYMS_BASE_RELATIVE=n, gone with Linux commit 64e166099b69
        // ("kallsyms: get rid of code for absolute kallsyms") (in v6.11).
        if let Some(at) = places.addresses {
            let mut raw = vec![0; count as usize * 8];
            read(at, &mut raw)?;
            let addresses: Vec<u64> = raw.chunks_exact(8).map(le_u64).collect();
            return if addresses.get(probe) == Some(&stext) {
                Ok(addresses)
            } else {
                Err(damaged(at, format!("it does not put _stext at {stext:#x}")))
            };
        }

        let at = places.offsets.ok_or_else(|| KernelError::NoInfo {
            key: "SYMBOL(kallsyms_offsets)".into(),
        })?;
        let base = match places.relative_base {
            Some(base_at) => {
                let mut base = [0; 8];
                read(base_at, &mut base)?;
                Some(u64::from_le_bytes(base))
            }
            None => None,
        };
        let mut raw = vec![0; count as usize * 4];
        read(at, &mut raw)?;
        let offset = |symbol: usize| le_i32(&raw[symbol * 4..symbol * 4 + 4]);
        // CONFIG_KALLSYMS_ABSOLUTE_PERCPU: per-CPU symbols are absolute and others negative. Gone
        // with Linux commit 01157ddc58dc ("kallsyms: Remove KALLSYMS_ABSOLUTE_PERCPU") (in v6.15).
        let absolute_percpu = |symbol: usize| match (base, offset(symbol)) {
            (Some(_), offset @ 0..) => Some(u64::from(offset.unsigned_abs())),
            (Some(base), offset) => Some(
                base.wrapping_sub(1)
                    .wrapping_add(u64::from(offset.unsigned_abs())),
            ),
            (None, _) => None,
        };
        let relative =
            |symbol: usize| Some(base?.wrapping_add(u64::from(offset(symbol).cast_unsigned())));
        // Without a base, each offset counts from its own place.
        let own_place = |symbol: usize| {
            Some(
                at.wrapping_add(symbol as u64 * 4)
                    .wrapping_add_signed(i64::from(offset(symbol))),
            )
        };
        let encodings: [&dyn Fn(usize) -> Option<u64>; 3] =
            [&absolute_percpu, &relative, &own_place];
        for decode in encodings {
            if decode(probe) == Some(stext) {
                return Ok((0..count as usize)
                    .map(|symbol| decode(symbol).unwrap_or(0))
                    .collect());
            }
        }
        Err(damaged(
            at,
            format!("by no known encoding is _stext at {stext:#x}"),
        ))
    }

    /// Number of symbols.
    pub(super) fn len(&self) -> usize {
        self.addresses.len()
    }

    /// Address of the symbol `name`; of several, the first in kallsyms' order.
    pub(super) fn address(&self, name: &str) -> Option<u64> {
        let symbol = self.find_all(name).next()?;
        self.addresses.get(symbol as usize).copied()
    }

    /// The symbol at or below `addr`, and how far below. Of several at one address, the first in
    /// kallsyms' order (which puts global symbols first).
    pub(super) fn at(&self, addr: u64) -> Option<(String, u64)> {
        let address = |symbol: &u32| self.addresses[*symbol as usize];
        let after = self.by_address.partition_point(|s| address(s) <= addr);
        let found = address(self.by_address.get(after.checked_sub(1)?)?);
        let first = self.by_address.partition_point(|s| address(s) < found);
        let mut name = Vec::new();
        self.expand(self.by_address[first], &mut name);
        Some((String::from_utf8_lossy(&name).into_owned(), addr - found))
    }

    /// The address of the next symbol above `addr`.
    pub(super) fn next_above(&self, addr: u64) -> Option<u64> {
        let address = |symbol: &u32| self.addresses[*symbol as usize];
        let after = self.by_address.partition_point(|s| address(s) <= addr);
        self.by_address.get(after).map(address)
    }

    fn find_all(&self, wanted: &str) -> impl Iterator<Item = u32> {
        let hash = u64::from(hash(wanted.as_bytes()));
        let first = self.by_name.partition_point(|entry| entry >> 32 < hash);
        let mut name = Vec::new();
        self.by_name[first..]
            .iter()
            .take_while(move |entry| *entry >> 32 == hash)
            .map(|entry| (entry & 0xffff_ffff) as u32)
            .filter(move |&symbol| {
                self.expand(symbol, &mut name);
                name == wanted.as_bytes()
            })
    }

    /// Writes the name of `symbol` to `name`, without its type.
    fn expand(&self, symbol: u32, name: &mut Vec<u8>) {
        name.clear();
        let (at, len) = self.name_at[symbol as usize];
        let at = at as usize;
        for &token in &self.names[at..at + usize::from(len)] {
            name.extend_from_slice(&self.tokens[usize::from(token)]);
            if name.len() > MAX_NAME + 1 {
                break;
            }
        }
        if !name.is_empty() {
            name.remove(0);
        }
    }
}

/// The 256 tokens: `index` holds their offsets in `table`, where each ends with a zero.
fn read_tokens(table: u64, index: u64, read: ReadImage<'_>) -> Result<Vec<Vec<u8>>, KernelError> {
    let mut raw = [0; 512];
    read(index, &mut raw)?;
    let offsets: Vec<usize> = raw
        .chunks_exact(2)
        .map(|pair| usize::from(u16::from_le_bytes([pair[0], pair[1]])))
        .collect();
    // Tokens are at most a symbol long, so the last ends within this.
    let end = offsets.iter().max().map_or(0, |last| last + 1024);
    let mut text = vec![0; end];
    read(table, &mut text)?;
    offsets
        .iter()
        .map(|&offset| {
            let token = &text[offset..];
            match token.iter().take(1024).position(|&byte| byte == 0) {
                Some(len) => Ok(token[..len].to_vec()),
                None => Err(damaged(table, format!("the token at {offset} has no end"))),
            }
        })
        .collect()
}

/// The compressed names, and where each is.
#[allow(clippy::type_complexity)]
fn read_names(
    at: u64,
    count: u32,
    read: ReadImage<'_>,
) -> Result<(Vec<u8>, Vec<(u32, u16)>), KernelError> {
    let mut names: Vec<u8> = Vec::new();
    // The count may be damaged: room for more symbols is taken as their names are read.
    let mut places = Vec::with_capacity(count.min(EXPECTED_SYMBOLS) as usize);
    let mut cursor = 0usize;
    while places.len() < count as usize {
        // The longest entry: two bytes of length, then up to 16 383 tokens.
        if names.len() < cursor + (2 + 0x3fff) {
            let had = names.len();
            names.resize(had + CHUNK, 0);
            read(at.wrapping_add(had as u64), &mut names[had..])?;
        }
        // Since Linux commit 73bbb94466fd ("kallsyms: support "big" kernel symbols") (in v6.1) a
        // length of 128 and more takes two bytes; before, none was that long.
        let (len, header) = match names[cursor] {
            short @ 0..0x80 => (u16::from(short), 1),
            low => (u16::from(low & 0x7f) | u16::from(names[cursor + 1]) << 7, 2),
        };
        cursor += header;
        if len == 0 {
            return Err(damaged(
                at.wrapping_add(cursor as u64),
                format!("name {} of {count} is empty", places.len()),
            ));
        }
        let place = u32::try_from(cursor)
            .ok()
            .filter(|_| cursor <= MAX_COMPRESSED)
            .ok_or_else(|| {
                let had = places.len();
                damaged(
                    at,
                    format!("{had} of {count} names take more than {MAX_COMPRESSED} bytes"),
                )
            })?;
        places.push((place, len));
        cursor += usize::from(len);
    }
    names.truncate(cursor);
    Ok((names, places))
}

fn damaged(addr: u64, detail: String) -> KernelError {
    KernelError::Damaged {
        what: "kallsyms",
        addr,
        detail,
    }
}

fn le_u64(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .rev()
        .fold(0, |sum, &byte| sum << 8 | u64::from(byte))
}

fn le_i32(bytes: &[u8]) -> i32 {
    bytes
        .iter()
        .rev()
        .fold(0u32, |sum, &byte| sum << 8 | u32::from(byte))
        .cast_signed()
}

/// FNV-1a: short names, no adversary to gain anything by collisions.
pub(super) fn hash(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash, &byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    })
}

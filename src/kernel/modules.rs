//! The modules that were loaded, and their symbols.

use super::kallsyms::hash;
use super::{Kernel, KernelError, Object, containers};

/// More symbols than any module has.
const MAX_SYMBOLS: u64 = 1 << 20;
const MAX_STRINGS: usize = 64 << 20;
/// Bytes of an ELF-64 symbol.
const ELF_SYMBOL: usize = 24;

/// A module that was loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Module {
    /// As `lsmod` shows it: "kvm_amd".
    pub name: String,
    /// Kernel virtual address of its code.
    pub base: u64,
    /// Bytes from `base` on. Newer kernels keep code and data apart; see
    /// [`contains`](Module::contains).
    pub size: u64,
    /// Address of its `struct module`.
    pub addr: u64,
    /// All its memory, as address and length in bytes.
    pub regions: Vec<(u64, u64)>,
}

impl Module {
    /// Whether the address is in the module's code or data.
    #[must_use]
    pub fn contains(&self, addr: u64) -> bool {
        self.regions
            .iter()
            .any(|&(base, size)| addr.wrapping_sub(base) < size)
    }
}

/// The list `modules`; empty for a kernel that was built without them.
pub(super) fn read_modules(kernel: &Kernel) -> Result<Vec<Module>, KernelError> {
    // Among vmlinux's own symbols: those of modules are what is being read here.
    let Some(head) = kernel.vmlinux_symbol("modules") else {
        return Ok(Vec::new());
    };
    let head = kernel.object("list_head", head)?;
    containers::list(&head, "module", "list")?
        .iter()
        .map(read_module)
        .collect()
}

fn read_module(module: &Object<'_>) -> Result<Module, KernelError> {
    // Since Linux commit ac3b43283923 ("module: replace module_layout with module_memory") (in
    // v6.4) there are seven regions; before, one for good and one dropped after loading.
    let mut regions = Vec::new();
    if module.has("mem") {
        let mem = module.get("mem")?;
        for i in 0..mem.array_len().unwrap_or(0).min(64) {
            let region = mem.element(i)?;
            regions.push((region.ptr("base")?, region.u("size")?));
        }
    } else if module.has("core_layout") {
        let layout = module.get("core_layout")?;
        regions.push((layout.ptr("base")?, layout.u("size")?));
    } else {
        return Err(KernelError::NoMember {
            ty: "struct module".into(),
            path: "mem".into(),
        });
    }
    let (base, size) = regions.first().copied().unwrap_or_default();
    regions.retain(|&(base, size)| base != 0 && size != 0);
    Ok(Module {
        name: module.get("name")?.string()?,
        base,
        size,
        addr: module.addr(),
        regions,
    })
}

/// A module's own symbols.
pub(super) struct ModuleSymbols {
    strings: Vec<u8>,
    /// Place of the name in `strings`, and address; in order of address.
    symbols: Vec<(u32, u64)>,
    /// Hash of the name and place in `symbols`, sorted.
    by_name: Vec<(u32, u32)>,
}

impl ModuleSymbols {
    /// Reads `module->kallsyms`: an ELF symbol table as the module loader left it, addresses final.
    pub(super) fn read(kernel: &Kernel, module: &Module) -> Result<ModuleSymbols, KernelError> {
        let table = kernel.object("module", module.addr)?.follow("kallsyms")?;
        let count = table.u("num_symtab")?;
        let damaged = |detail: String| KernelError::Damaged {
            what: "struct mod_kallsyms",
            addr: table.addr(),
            detail,
        };
        let bytes = usize::try_from(count)
            .ok()
            .filter(|_| count <= MAX_SYMBOLS)
            .map(|count| count * ELF_SYMBOL)
            .ok_or_else(|| damaged(format!("it counts {count} symbols")))?;
        let mut raw = vec![0; bytes];
        kernel.read(table.ptr("symtab")?, &mut raw)?;

        let mut symbols: Vec<(u32, u64)> = raw
            .chunks_exact(ELF_SYMBOL)
            .filter_map(|symbol| {
                let name = u32::from_le_bytes(symbol[..4].try_into().ok()?);
                let section = u16::from_le_bytes(symbol[6..8].try_into().ok()?);
                let value = u64::from_le_bytes(symbol[8..16].try_into().ok()?);
                // Section 0 is what the module takes from elsewhere.
                (name != 0 && section != 0 && value != 0).then_some((name, value))
            })
            .collect();
        symbols.sort_by_key(|&(_, value)| value);
        // Nothing says how long the strings are: up to the end of the last name.
        let last = symbols.iter().map(|&(name, _)| name as usize).max();
        let len = last.map_or(0, |last| last + 1);
        if len > MAX_STRINGS {
            return Err(damaged(format!("a name stands at {len:#x} of its strings")));
        }
        let at = table.ptr("strtab")?;
        let mut strings = vec![0; len];
        kernel.read(at, &mut strings)?;
        if len > 0 {
            let tail = kernel.read_cstr_bytes(at.wrapping_add(len as u64 - 1), 512)?;
            strings.pop();
            strings.extend_from_slice(&tail);
        }
        strings.push(0);

        let mut read = ModuleSymbols {
            strings,
            symbols,
            by_name: Vec::new(),
        };
        read.by_name = (0u32..)
            .zip(&read.symbols)
            .map(|(index, &(name, _))| (hash(read.name(name)), index))
            .collect();
        read.by_name.sort_unstable();
        Ok(read)
    }

    /// Address of the symbol `name`.
    pub(super) fn address(&self, name: &str) -> Option<u64> {
        let hash = hash(name.as_bytes());
        let first = self.by_name.partition_point(|entry| entry.0 < hash);
        self.by_name[first..]
            .iter()
            .take_while(|entry| entry.0 == hash)
            .map(|entry| self.symbols[entry.1 as usize])
            .find(|symbol| self.name(symbol.0) == name.as_bytes())
            .map(|symbol| symbol.1)
    }

    /// The symbol at or below `addr`, and how far below.
    pub(super) fn at(&self, addr: u64) -> Option<(String, u64)> {
        let after = self.symbols.partition_point(|symbol| symbol.1 <= addr);
        let found = self.symbols.get(after.checked_sub(1)?)?.1;
        let first = self.symbols.partition_point(|symbol| symbol.1 < found);
        // The loader enters section marks and such under names that are no use to anybody.
        let name = self.symbols[first..after]
            .iter()
            .map(|symbol| self.name(symbol.0))
            .min_by_key(|name| name.is_empty() || name.starts_with(b"__"))?;
        Some((String::from_utf8_lossy(name).into_owned(), addr - found))
    }

    fn name(&self, at: u32) -> &[u8] {
        let text = self.strings.get(at as usize..).unwrap_or_default();
        let len = text.iter().position(|&byte| byte == 0).unwrap_or(0);
        &text[..len]
    }
}

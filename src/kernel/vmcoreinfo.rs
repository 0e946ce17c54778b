//! VMCOREINFO: the note in which a kernel tells a crash dump's readers where to begin.

use std::collections::HashMap;

use super::KernelError;
use crate::dump::{PAGE_SIZE, PageState, PhysicalMemory};

/// Pages read at once when the note is looked for.
const BATCH: usize = 512;

/// The parsed note. Linux Documentation/admin-guide/kdump/vmcoreinfo.rst.
#[derive(Clone, Debug, Default)]
pub struct VmcoreInfo {
    lines: HashMap<String, String>,
}

impl VmcoreInfo {
    /// Parses the note's text, `KEY=value` lines. A line of another shape is passed over; of a key
    /// that stands there twice, the last counts.
    pub fn parse(text: &str) -> VmcoreInfo {
        let lines = text
            .lines()
            .filter_map(|line| line.trim_end_matches('\0').split_once('='))
            .map(|(key, value)| (key.to_owned(), value.trim().to_owned()))
            .collect();
        VmcoreInfo { lines }
    }

    /// The value of `key` as it is written, for example `get("SYMBOL(init_top_pgt)")`.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.lines.get(key).map(String::as_str)
    }

    /// The value of `key`, which must be there.
    pub fn need(&self, key: &str) -> Result<&str, KernelError> {
        self.get(key).ok_or_else(|| KernelError::NoInfo {
            key: key.to_owned(),
        })
    }

    /// Address of a symbol: `SYMBOL(name)`, hexadecimal. None when the note does not name it.
    pub fn symbol(&self, name: &str) -> Result<Option<u64>, KernelError> {
        self.parsed(
            &format!("SYMBOL({name})"),
            "a hexadecimal address",
            |value| u64::from_str_radix(value, 16).ok(),
        )
    }

    /// `NUMBER(name)`, decimal and possibly negative. None when the note does not name it.
    pub fn number(&self, name: &str) -> Result<Option<i64>, KernelError> {
        self.parsed(&format!("NUMBER({name})"), "a decimal number", |value| {
            value.parse().ok()
        })
    }

    fn parsed<T>(
        &self,
        key: &str,
        wanted: &'static str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Result<Option<T>, KernelError> {
        match self.get(key) {
            None => Ok(None),
            Some(value) => match parse(value) {
                Some(parsed) => Ok(Some(parsed)),
                None => Err(KernelError::BadInfo {
                    key: key.to_owned(),
                    value: value.to_owned(),
                    wanted,
                }),
            },
        }
    }
}

/// Looks for the note's text in memory, where the kernel has kept it ready on a page of its own since
/// it booted; gives each page that looks like it. Those of guests, whose memory is here too, look the
/// same: only the host's leads to a kernel. Linux kernel/crash_core.c: `vmcoreinfo_data`.
pub(super) fn search(memory: &dyn PhysicalMemory) -> impl Iterator<Item = String> {
    let mut pages =
        (0..memory.max_pfn()).filter(|pfn| memory.page_state(*pfn) == PageState::Present);
    std::iter::from_fn(move || {
        let pfns: Vec<u64> = pages.by_ref().take(BATCH).collect();
        if pfns.is_empty() {
            return None;
        }
        let mut bytes = vec![0; pfns.len() * PAGE_SIZE as usize];
        // A page that cannot be read is zeros, and so not the note.
        let _ = memory.read_pages(&pfns, &mut bytes);
        let notes: Vec<String> = bytes
            .chunks_exact(PAGE_SIZE as usize)
            .filter(|page| page.starts_with(b"OSRELEASE="))
            .map(|page| {
                let len = page
                    .iter()
                    .position(|&byte| byte == 0)
                    .unwrap_or(page.len());
                String::from_utf8_lossy(&page[..len]).into_owned()
            })
            .filter(|text| text.contains("NUMBER(phys_base)="))
            .collect();
        Some(notes)
    })
    .flatten()
}

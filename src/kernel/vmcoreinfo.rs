//! VMCOREINFO: the note in which a kernel tells a crash dump's readers where to begin.

use std::collections::HashMap;

use super::KernelError;
use crate::dump::{PAGE_SIZE, PageState, PhysicalMemory};

/// Pages read at once when the note is looked for.
const BATCH: usize = 4096;

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

/// A page that looks like the one on which a kernel keeps its note's text.
pub(super) struct Candidate {
    /// Where it stands.
    pub(super) pfn: u64,
    pub(super) text: String,
}

/// Looks for the note's text in memory, where the kernel has kept it ready on a page of its own since
/// it booted; gives each page that looks like it. Those of guests, whose memory is here too, look the
/// same. Linux kernel/crash_core.c: `vmcoreinfo_data`. Reads on all CPUs, all of the memory if need be.
pub(super) fn search(memory: &dyn PhysicalMemory) -> impl Iterator<Item = Candidate> {
    let mut pages =
        (0..memory.max_pfn()).filter(|pfn| memory.page_state(*pfn) == PageState::Present);
    let mut pfns = Vec::with_capacity(BATCH);
    let mut bytes = vec![0; BATCH * PAGE_SIZE as usize];
    std::iter::from_fn(move || {
        pfns.clear();
        pfns.extend(pages.by_ref().take(BATCH));
        if pfns.is_empty() {
            return None;
        }
        let bytes = &mut bytes[..pfns.len() * PAGE_SIZE as usize];
        // A page that cannot be read is zeros, and so not the note.
        let _ = memory.read_pages(&pfns, bytes);
        let found: Vec<Candidate> = pfns
            .iter()
            .zip(bytes.chunks_exact(PAGE_SIZE as usize))
            .filter(|(_, page)| page.starts_with(b"OSRELEASE="))
            .map(|(&pfn, page)| {
                let text = page.split(|&byte| byte == 0).next().unwrap_or_default();
                Candidate {
                    pfn,
                    text: String::from_utf8_lossy(text).into_owned(),
                }
            })
            .filter(|found| found.text.contains("NUMBER(phys_base)="))
            .collect();
        Some(found)
    })
    .flatten()
}

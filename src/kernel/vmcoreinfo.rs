//! VMCOREINFO: the note in which a kernel tells a crash dump's readers where to begin.

use std::collections::HashMap;

use super::KernelError;

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

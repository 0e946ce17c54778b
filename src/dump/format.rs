//! What a dump's file is, and whether it is whole, in words.

use std::fmt;
use std::path::PathBuf;

use super::Memory;
use super::image::Image;
use super::kdump::KdumpMemory;
use super::kdump_headers::Headers;
use super::notes::Notes;

/// What kind of file a dump is. `Display` gives a name for people, such as
/// "kdump-compressed (zlib), flattened".
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Format(String);

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Format {
    pub(super) fn describe(
        image: &Image,
        headers: Option<&Headers>,
        notes: &Notes,
        sources: usize,
    ) -> Format {
        let mut name = match headers {
            None if notes.kcore => "the live kernel's memory (/proc/kcore)".to_owned(),
            None => "ELF".to_owned(),
            Some(headers) => match headers.codec() {
                Some(codec) => format!("kdump-compressed ({})", codec.name()),
                None => "kdump-compressed".to_owned(),
            },
        };
        if image.is_flattened() {
            name += ", flattened";
        }
        if sources > 1 {
            name += &format!(", in {sources} parts");
        }
        if notes.cpus.iter().any(|cpu| cpu.qemu.is_some()) {
            name += ", by QEMU";
        }
        Format(name)
    }
}

/// Why pages are missing that should be there, if any are.
pub(super) fn why_incomplete(
    image: &Image,
    memory: &Memory,
    headers: Option<&Headers>,
    paths: &[PathBuf],
) -> Option<String> {
    if let Memory::Kdump(memory) = memory
        && let Some(missing) = missing_parts(memory, paths)
    {
        return Some(missing);
    }
    if headers.is_some_and(Headers::is_incomplete) {
        return Some("makedumpfile ran out of space while it wrote the dump".into());
    }
    if image.is_cut() {
        return Some("the flattened stream ends without its end mark: it was cut short".into());
    }
    let truncated = match memory {
        Memory::Elf(memory) => memory.is_truncated(),
        Memory::Kdump(memory) => memory.is_truncated(image),
    };
    truncated.then(|| {
        format!(
            "the file ends, at {} bytes, before its last pages: it was cut short",
            image.len()
        )
    })
}

/// Names the page frames whose part was not given.
fn missing_parts(memory: &KdumpMemory, paths: &[PathBuf]) -> Option<String> {
    let gaps: Vec<String> = memory
        .gaps()
        .iter()
        .map(|gap| {
            let name = |part: Option<usize>| Some(paths.get(part?)?.display().to_string());
            let (before, behind) = memory.around(gap);
            let place = match (name(before), name(behind)) {
                (Some(before), Some(behind)) => format!(", between {before} and {behind}"),
                (Some(before), None) => format!(", after {before}"),
                (None, Some(behind)) => format!(", before {behind}"),
                (None, None) => String::new(),
            };
            format!("page frames {:#x} to {:#x}{place}", gap.start, gap.end)
        })
        .collect();
    (!gaps.is_empty()).then(|| format!("a part of the split dump is missing: {}", gaps.join("; ")))
}

//! What is this file? Told by its first bytes, never by its name.

use super::refusal::Refusal;

/// The formats that are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Elf,
    Kdump,
}

const HINT_DECOMPRESS: &str = "decompress the file first; dumps are read from a plain file";
const HINT_WHERE: &str =
    "name the file that kdump saved, often /var/crash/*/vmcore or /var/crash/*/dump.*";
const HINT_FORMATS: &str =
    "ELF and kdump-compressed dumps of x86-64 Linux are read (docs/dump-formats.md)";

/// Begins of files that are known and not read: signature, whether it is some crash dump at all,
/// what it is, and what to do.
const KNOWN: &[(&[u8], bool, &str, &str)] = &[
    (
        b"DISKDUMP",
        true,
        "a diskdump of a 2.4 or 2.6 kernel",
        HINT_FORMATS,
    ),
    (b"EMiL", true, "a LiME memory image", HINT_FORMATS),
    // fmem's and AVML's version 2 of LiME.
    (b"AVML", true, "an AVML memory image", HINT_FORMATS),
    (b"PAGEDU64", true, "a Windows crash dump", HINT_FORMATS),
    (
        b"PAGEDUMP",
        true,
        "a 32-bit Windows crash dump",
        HINT_FORMATS,
    ),
    (
        b"MDMP",
        false,
        "it is a Windows minidump of a process",
        HINT_FORMATS,
    ),
    // sadump_part_header.signature1 and 2: "sadump" in little-endian words. makedumpfile sadump_mod.h
    (
        b"sadump\0\0",
        true,
        "an sadump (Fujitsu firmware dump)",
        HINT_FORMATS,
    ),
    (
        b"\x1f\x8b",
        false,
        "it is compressed with gzip",
        HINT_DECOMPRESS,
    ),
    (
        b"\xfd7zXZ\0",
        false,
        "it is compressed with xz",
        HINT_DECOMPRESS,
    ),
    (
        b"\x28\xb5\x2f\xfd",
        false,
        "it is compressed with zstd",
        HINT_DECOMPRESS,
    ),
    (
        b"BZh",
        false,
        "it is compressed with bzip2",
        HINT_DECOMPRESS,
    ),
    (
        b"\x04\x22\x4d\x18",
        false,
        "it is compressed with lz4",
        HINT_DECOMPRESS,
    ),
    (
        b"\x89LZO\0",
        false,
        "it is compressed with lzop",
        HINT_DECOMPRESS,
    ),
    (b"PK\x03\x04", false, "it is a zip archive", HINT_DECOMPRESS),
    (
        b"QEVM",
        false,
        "it is QEMU's saved state of a guest",
        "QEMU itself loads it, with -incoming",
    ),
    (
        b"LibvirtQ",
        false,
        "it is a guest saved by libvirt",
        "`virsh restore` loads it",
    ),
    (b"QFI\xfb", false, "it is a qcow2 disk image", HINT_WHERE),
    (b"KDMV", false, "it is a VMware disk image", HINT_WHERE),
];

/// Recognises a dump by the first bytes of its (unfolded) image.
pub(super) fn recognise(head: &[u8]) -> Result<Kind, Refusal> {
    if head.starts_with(b"\x7fELF") {
        return Ok(Kind::Elf);
    }
    if head.starts_with(b"KDUMP   ") {
        return Ok(Kind::Kdump);
    }
    if head.is_empty() {
        return Err(Refusal::not_a_dump(
            "it is empty",
            "the capture kernel ran out of space or died before it wrote; look for another file",
        ));
    }
    for &(signature, is_dump, what, hint) in KNOWN {
        if head.starts_with(signature) {
            return Err(match is_dump {
                true => Refusal::unsupported(what, hint),
                false => Refusal::not_a_dump(what, hint),
            });
        }
    }
    if head.iter().all(|&b| b == 0) {
        return Err(Refusal::not_a_dump(
            "it begins with zeros",
            "its data never reached the disk, or it is raw memory, which has no headers to read it by",
        ));
    }
    if is_text(head) {
        return Err(Refusal::not_a_dump("it is a text file", HINT_WHERE));
    }
    let start: Vec<String> = head.iter().take(8).map(|b| format!("{b:02x}")).collect();
    Err(Refusal::not_a_dump(
        format!(
            "its first bytes ({}) belong to no known format",
            start.join(" ")
        ),
        HINT_WHERE,
    ))
}

fn is_text(head: &[u8]) -> bool {
    // The last character may be cut off.
    let text = match std::str::from_utf8(head) {
        Ok(text) => text,
        Err(e) if e.error_len().is_none() => {
            std::str::from_utf8(&head[..e.valid_up_to()]).unwrap_or_default()
        }
        Err(_) => return false,
    };
    !text.is_empty()
        && text
            .chars()
            .all(|c| !c.is_control() || matches!(c, '\n' | '\r' | '\t' | '\x1b'))
}

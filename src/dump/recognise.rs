//! What is this file? Told by its first bytes, never by its name.

use super::refusal::Refusal;

/// Bytes of a file that [`recognise`] wants to see, if it has as many.
pub(super) const HEAD: usize = 4096;

/// The formats that are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Elf,
    Kdump,
}

const HINT_DECOMPRESS: &str = "decompress the file first; dumps are read from a plain file";
const HINT_UNPACK: &str = "unpack the dump first; dumps are read from a plain file";
const HINT_LINUX: &str = "dumps of Linux on x86-64 are read";
const HINT_RAW: &str = "it has memory alone and no way to the kernel in it; take an ELF dump (virsh dump --memory-only --format elf), or let kdump make one";
const HINT_SADUMP: &str =
    "turn it into a kdump first: makedumpfile -c -d 17 DUMP NEW (with -x VMLINUX)";
const HINT_VMWARE: &str =
    "dumps of KVM hosts are read; turn it into an ELF dump first (VMware's vmss2core -M)";
const HINT_VBOX: &str = "VirtualBox itself loads it";
const HINT_HIBERNATED: &str = "it is not dead: boot that machine, and it goes on";
const HINT_XEN: &str = "Xen itself loads it (xl restore)";
const HINT_QEMU: &str = "QEMU itself loads it, with -incoming";
const HINT_LIBVIRT: &str = "`virsh restore` loads it";
const HINT_DISK: &str = "mount it (qemu-nbd, guestmount) and name the dump in it";
const HINT_MOUNT: &str = "open or mount it and name the dump in it, often under /var/crash";
const HINT_WHERE: &str =
    "name the file that kdump saved, often /var/crash/*/vmcore or /var/crash/*/dump.*";
const HINT_FORMATS: &str =
    "ELF and kdump-compressed dumps of x86-64 Linux are read (docs/dump-formats.md)";

/// A file that is known and not read.
struct Known {
    /// Where the signature stands.
    at: usize,
    signature: &'static [u8],
    /// Whether it is a crash dump of some kind.
    is_dump: bool,
    what: &'static str,
    hint: &'static str,
}

const fn dump(
    at: usize,
    signature: &'static [u8],
    what: &'static str,
    hint: &'static str,
) -> Known {
    Known {
        at,
        signature,
        is_dump: true,
        what,
        hint,
    }
}

const fn other(
    at: usize,
    signature: &'static [u8],
    what: &'static str,
    hint: &'static str,
) -> Known {
    Known {
        at,
        signature,
        is_dump: false,
        what,
        hint,
    }
}

/// Signatures from makedumpfile (sadump_mod.h, diskdump_mod.h), crash (vmware_vmss.h), LiME, AVML,
/// Linux (mm/swapfile.c, kernel/power/swap.c), libxl, libvirt and file(1). What has none in its first
/// page is not here: VMware's .vmem, Hyper-V's .vmrs, sadump's media backup.
const KNOWN: &[Known] = &[
    dump(
        0,
        b"DISKDUMP",
        "a diskdump of a 2.4 or 2.6 kernel",
        HINT_FORMATS,
    ),
    dump(0, b"EMiL", "a LiME memory image", HINT_RAW),
    dump(0, b"AVML", "an AVML memory image", HINT_RAW),
    dump(0, b"PAGEDU64", "a crash dump of 64-bit Windows", HINT_LINUX),
    dump(0, b"PAGEDUMP", "a crash dump of 32-bit Windows", HINT_LINUX),
    other(
        0,
        b"MDMP",
        "it is a Windows minidump of a process",
        HINT_LINUX,
    ),
    dump(
        0,
        b"sadump\0\0",
        "an sadump (memory saved by the firmware of a Fujitsu server)",
        HINT_SADUMP,
    ),
    dump(
        0,
        b"minidump FreeBSD",
        "a crash dump of FreeBSD",
        HINT_LINUX,
    ),
    dump(
        0,
        b"\xd0\xbe\xd0\xbe",
        "a VMware snapshot or suspended guest (.vmss, .vmsn)",
        HINT_VMWARE,
    ),
    dump(
        0,
        b"\xd2\xbe\xd2\xbe",
        "a VMware snapshot or suspended guest (.vmss, .vmsn)",
        HINT_VMWARE,
    ),
    dump(
        0,
        b"\xd3\xbe\xd3\xbe",
        "a VMware snapshot or suspended guest (.vmss, .vmsn)",
        HINT_VMWARE,
    ),
    dump(
        0,
        b"\xd1\xba\xd1\xba",
        "a VMware snapshot or suspended guest (.vmss, .vmsn)",
        HINT_VMWARE,
    ),
    dump(
        0,
        b"\xd2\xba\xd2\xba",
        "a VMware snapshot or suspended guest (.vmss, .vmsn)",
        HINT_VMWARE,
    ),
    other(
        0,
        b"\x7fVirtualBox SavedState",
        "it is a guest's state saved by VirtualBox",
        HINT_VBOX,
    ),
    dump(0, b"hibr", "a hibernation file of Windows", HINT_LINUX),
    dump(0, b"HIBR", "a hibernation file of Windows", HINT_LINUX),
    dump(0, b"wake", "a hibernation file of Windows", HINT_LINUX),
    dump(0, b"WAKE", "a hibernation file of Windows", HINT_LINUX),
    dump(
        4086,
        b"S1SUSPEND",
        "the swap space of a hibernated Linux",
        HINT_HIBERNATED,
    ),
    dump(
        4086,
        b"S2SUSPEND",
        "the swap space of a hibernated Linux",
        HINT_HIBERNATED,
    ),
    dump(
        4086,
        b"ULSUSPEND",
        "the swap space of a hibernated Linux",
        HINT_HIBERNATED,
    ),
    other(4086, b"SWAPSPACE2", "it is swap space", HINT_WHERE),
    other(4086, b"SWAP-SPACE", "it is swap space", HINT_WHERE),
    other(
        0,
        b"Xen saved domain",
        "it is a guest saved by Xen (xl save)",
        HINT_XEN,
    ),
    other(
        0,
        b"LinuxGuestRecord",
        "it is a guest saved by Xen (xm save)",
        HINT_XEN,
    ),
    other(0, b"QEVM", "it is QEMU's saved state of a guest", HINT_QEMU),
    other(
        0,
        b"LibvirtQ",
        "it is a guest saved by libvirt",
        HINT_LIBVIRT,
    ),
    other(0, b"QFI\xfb", "it is a qcow2 disk image", HINT_DISK),
    other(0, b"KDMV", "it is a VMware disk image", HINT_DISK),
    other(
        0,
        b"vhdxfile",
        "it is a Hyper-V disk image (VHDX)",
        HINT_DISK,
    ),
    other(0, b"conectix", "it is a disk image (VHD)", HINT_DISK),
    other(
        0,
        b"<<< Oracle VM VirtualBox Disk",
        "it is a VirtualBox disk image",
        HINT_DISK,
    ),
    other(
        1080,
        b"\x53\xef",
        "it is an ext2, ext3 or ext4 file system",
        HINT_MOUNT,
    ),
    other(0, b"XFSB", "it is an XFS file system", HINT_MOUNT),
    other(
        512,
        b"LABELONE",
        "it is a physical volume of LVM",
        HINT_MOUNT,
    ),
    other(
        0,
        b"LUKS\xba\xbe",
        "it is an encrypted volume (LUKS)",
        HINT_MOUNT,
    ),
    other(514, b"HdrS", "it is a Linux kernel", HINT_WHERE),
    other(
        0,
        b"\x1f\x8b",
        "it is compressed with gzip",
        HINT_DECOMPRESS,
    ),
    other(
        0,
        b"\xfd7zXZ\0",
        "it is compressed with xz",
        HINT_DECOMPRESS,
    ),
    other(
        0,
        b"\x28\xb5\x2f\xfd",
        "it is compressed with zstd",
        HINT_DECOMPRESS,
    ),
    other(0, b"BZh", "it is compressed with bzip2", HINT_DECOMPRESS),
    other(
        0,
        b"\x04\x22\x4d\x18",
        "it is compressed with lz4",
        HINT_DECOMPRESS,
    ),
    other(
        0,
        b"\x02\x21\x4c\x18",
        "it is compressed with lz4",
        HINT_DECOMPRESS,
    ),
    other(
        0,
        b"\x89LZO\0",
        "it is compressed with lzop",
        HINT_DECOMPRESS,
    ),
    other(0, b"PK\x03\x04", "it is a zip archive", HINT_UNPACK),
    other(0, b"7z\xbc\xaf\x27\x1c", "it is a 7z archive", HINT_UNPACK),
    other(257, b"ustar", "it is a tar archive", HINT_UNPACK),
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
    let known = KNOWN.iter().find(|known| {
        head.get(known.at..)
            .is_some_and(|rest| rest.starts_with(known.signature))
    });
    if let Some(known) = known {
        return Err(match known.is_dump {
            true => Refusal::unsupported(known.what, known.hint),
            false => Refusal::not_a_dump(known.what, known.hint),
        });
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

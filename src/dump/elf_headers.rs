//! The header of an ELF dump and its table of segments.
//!
//! goblin gives the layouts. It is given one chunk of the table at a time and never the file,
//! because it would want it in memory, and because it takes a core of 70 000 segments for one of
//! 65 535.

use goblin::container::{Container, Ctx};
use goblin::elf::header::{self, header64};
use goblin::elf::program_header::ProgramHeader;

use super::extents::MAX_EXTENTS;
use super::image::Image;
use super::refusal::Refusal;

/// In `e_phnum`: the true count is `sh_info` of section 0. Linux include/uapi/linux/elf.h
const PN_XNUM: u16 = 0xffff;
/// `sh_info` in `Elf64_Shdr`.
const SH_INFO: usize = 44;

const EHDR: &str = "Elf64_Ehdr";
pub(super) const PHDR: &str = "Elf64_Phdr";

pub(super) fn read_header(image: &Image) -> Result<header64::Header, Refusal> {
    let mut bytes = [0u8; header64::SIZEOF_EHDR];
    image
        .read_at(0, &mut bytes)
        .map_err(|e| Refusal::unreadable(EHDR, 0, e))?;
    let hint = "dumps of 64-bit x86 Linux are read (docs/dump-formats.md)";
    match bytes[header::EI_CLASS] {
        header::ELFCLASS64 => {}
        header::ELFCLASS32 => return Err(Refusal::unsupported("a 32-bit ELF file", hint)),
        other => {
            return Err(Refusal::damaged(
                EHDR,
                "e_ident[EI_CLASS]",
                4,
                format!("is {other}, not 1 or 2"),
            ));
        }
    }
    let machine_at = [bytes[18], bytes[19]];
    if bytes[header::EI_DATA] == header::ELFDATA2MSB {
        let machine = header::machine_to_str(u16::from_be_bytes(machine_at));
        return Err(Refusal::unsupported(
            format!("a big-endian ELF file ({machine})"),
            hint,
        ));
    }
    let machine = u16::from_le_bytes(machine_at);
    if machine != header::EM_X86_64 {
        let name = header::machine_to_str(machine);
        return Err(Refusal::unsupported(
            format!("an ELF file of another architecture ({name})"),
            hint,
        ));
    }
    let header = header64::Header::parse(&bytes)
        .map_err(|e| Refusal::damaged(EHDR, "", 0, format!("cannot be read: {e}")))?;
    if header.e_type != header::ET_CORE {
        return Err(Refusal::not_a_dump(
            format!(
                "it is an ELF file of type {}, not a core",
                header::et_to_str(header.e_type)
            ),
            "name the dump, not the kernel or a program",
        ));
    }
    if header.e_phnum > 0
        && usize::from(header.e_phentsize)
            != goblin::elf::program_header::program_header64::SIZEOF_PHDR
    {
        let problem = format!("is {}, not 56", header.e_phentsize);
        return Err(Refusal::damaged(EHDR, "e_phentsize", 54, problem));
    }
    Ok(header)
}

/// The number of segments, checked against the file's length.
pub(super) fn count_segments(image: &Image, header: &header64::Header) -> Result<u64, Refusal> {
    let (count, field) = if header.e_phnum == PN_XNUM {
        let mut section = [0u8; goblin::elf::section_header::section_header64::SIZEOF_SHDR];
        image
            .read_at(header.e_shoff, &mut section)
            .map_err(|e| Refusal::unreadable("Elf64_Shdr", header.e_shoff, e))?;
        let info = &section[SH_INFO..SH_INFO + 4];
        (
            u64::from(u32::from_le_bytes([info[0], info[1], info[2], info[3]])),
            "sh_info (PN_XNUM)",
        )
    } else {
        (u64::from(header.e_phnum), "e_phnum")
    };
    if count == 0 {
        if header.e_shnum > 0 {
            // `xl dump-core`: everything is in sections such as .xen_pages.
            return Err(Refusal::unsupported(
                "a Xen guest's core (sections without segments)",
                "dumps of Linux on real hardware or under KVM are read",
            ));
        }
        return Err(Refusal::damaged(
            EHDR,
            "e_phnum",
            56,
            "is 0: there is no memory in this dump (its header was never finished?)",
        ));
    }
    if count > MAX_EXTENTS as u64 {
        return Err(Refusal::damaged(
            EHDR,
            field,
            0,
            format!("is {count}, more than any dump has"),
        ));
    }
    let size = goblin::elf::program_header::program_header64::SIZEOF_PHDR as u64;
    let fits = header
        .e_phoff
        .checked_add(count * size)
        .is_some_and(|end| end <= image.len());
    if !fits {
        return Err(Refusal::damaged(
            EHDR,
            field,
            0,
            format!(
                "is {count}: a table of {} bytes at {:#x} does not fit into the file of {} bytes (cut short?)",
                count * size,
                header.e_phoff,
                image.len()
            ),
        ));
    }
    Ok(count)
}

/// One chunk of the segment table at a time, so that a table of millions costs no memory.
pub(super) fn for_each_segment(
    image: &Image,
    table: u64,
    count: u64,
    mut each: impl FnMut(ProgramHeader, u64) -> Result<(), Refusal>,
) -> Result<(), Refusal> {
    const CHUNK: u64 = 1024;
    let ctx = Ctx::new(Container::Big, goblin::container::Endian::Little);
    let size = ProgramHeader::size(ctx) as u64;
    let mut bytes = vec![0; (CHUNK.min(count) * size) as usize];
    let mut done = 0;
    while done < count {
        let n = CHUNK.min(count - done);
        let at = table + done * size;
        let bytes = &mut bytes[..(n * size) as usize];
        image
            .read_at(at, bytes)
            .map_err(|e| Refusal::unreadable(PHDR, at, e))?;
        let segments = ProgramHeader::parse(bytes, 0, n as usize, ctx)
            .map_err(|e| Refusal::damaged(PHDR, "", at, format!("cannot be read: {e}")))?;
        for (i, segment) in segments.into_iter().enumerate() {
            each(segment, at + i as u64 * size)?;
        }
        done += n;
    }
    Ok(())
}

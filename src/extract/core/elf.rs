//! The frame of an ELF core: header, segments, notes.

use super::PAGE;

const HEADER: u64 = 64;
const SEGMENT: u64 = 56;
const SECTION: u64 = 64;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
/// e_phnum has 16 bits. This says that the number is in `sh_info` of section 0.
/// Linux include/uapi/linux/elf.h.
const PN_XNUM: u16 = 0xffff;

/// A range of memory. Bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    pub virtual_address: u64,
    pub physical_address: u64,
    /// PF_X 1, PF_W 2, PF_R 4.
    pub flags: u32,
    /// Of `len`, what the file has: all or nothing.
    pub in_file: u64,
    pub len: u64,
    pub align: u64,
}

/// The file up to its first page of memory.
pub(super) fn head(segments: &[Segment], notes: &[u8]) -> Vec<u8> {
    let count = segments.len() as u64 + 1;
    let (count_in_header, sections) = match u16::try_from(count) {
        Ok(n) if n < PN_XNUM => (n, 0_u16),
        _ => (PN_XNUM, 1),
    };
    let sections_at = match sections {
        0 => 0,
        _ => HEADER + count * SEGMENT,
    };
    let notes_at = HEADER + count * SEGMENT + u64::from(sections) * SECTION;
    let mut data_at = (notes_at + notes.len() as u64).next_multiple_of(PAGE);
    let mut head = Vec::with_capacity(data_at as usize);
    head.extend(b"\x7fELF\x02\x01\x01");
    head.resize(16, 0);
    let (et_core, em_x86_64) = (4_u16, 62_u16);
    head.extend(et_core.to_le_bytes());
    head.extend(em_x86_64.to_le_bytes());
    head.extend(1_u32.to_le_bytes());
    // No entry.
    for offset in [0, HEADER, sections_at] {
        head.extend(offset.to_le_bytes());
    }
    head.extend(0_u32.to_le_bytes());
    let section_size = if sections == 0 { 0 } else { SECTION as u16 };
    for half in [
        HEADER as u16,
        SEGMENT as u16,
        count_in_header,
        section_size,
        sections,
        0,
    ] {
        head.extend(half.to_le_bytes());
    }
    let mut segment = |kind: u32, flags: u32, words: [u64; 6]| {
        head.extend(kind.to_le_bytes());
        head.extend(flags.to_le_bytes());
        head.extend(words.iter().flat_map(|w| w.to_le_bytes()));
    };
    let len = notes.len() as u64;
    segment(PT_NOTE, 0, [notes_at, 0, 0, len, len, 0]);
    for s in segments {
        let words = [
            data_at,
            s.virtual_address,
            s.physical_address,
            s.in_file,
            s.len,
            s.align,
        ];
        segment(PT_LOAD, s.flags, words);
        // A damaged dump may tell of more than there can be: the file cannot be made then.
        data_at = data_at.saturating_add(s.in_file);
    }
    if sections > 0 {
        let mut section = [0; SECTION as usize];
        // `sh_info`.
        section[44..48].copy_from_slice(&u32::try_from(count).unwrap_or(u32::MAX).to_le_bytes());
        head.extend(section);
    }
    head.extend(notes);
    head.resize(head.len().next_multiple_of(PAGE as usize), 0);
    head
}

/// A note: lengths, type, name, content; both padded to 4 bytes.
pub(super) fn note(out: &mut Vec<u8>, name: &[u8], kind: u32, content: &[u8]) {
    let len = |part: &[u8]| u32::try_from(part.len()).unwrap_or(u32::MAX);
    for word in [len(name), len(content), kind] {
        out.extend(word.to_le_bytes());
    }
    for part in [name, content] {
        out.extend(part);
        out.resize(out.len().next_multiple_of(4), 0);
    }
}

/// `struct elf_prstatus` of x86-64.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Status {
    pub pending: u64,
    pub blocked: u64,
    pub pid: u32,
    pub ppid: u32,
    pub pgid: u32,
    pub sid: u32,
    /// Notes with its FPU registers follow.
    pub has_fpu: bool,
    /// In the order of `struct user_regs_struct`.
    pub registers: [u64; 27],
}

impl Status {
    /// NT_PRSTATUS.
    pub fn put(&self, out: &mut Vec<u8>) {
        const NT_PRSTATUS: u32 = 1;
        const SIZE: usize = 336;
        let mut status = Vec::with_capacity(SIZE);
        // No signal: nobody killed it.
        status.resize(16, 0);
        for word in [self.pending, self.blocked] {
            status.extend(word.to_le_bytes());
        }
        for word in [self.pid, self.ppid, self.pgid, self.sid] {
            status.extend(word.to_le_bytes());
        }
        // Times.
        status.resize(112, 0);
        status.extend(self.registers.iter().flat_map(|w| w.to_le_bytes()));
        status.extend(u32::from(self.has_fpu).to_le_bytes());
        status.resize(SIZE, 0);
        note(out, b"CORE\0", NT_PRSTATUS, &status);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(bytes: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"))
    }

    #[test]
    fn more_segments_than_fit_are_counted_elsewhere() {
        let segment = Segment {
            virtual_address: 0x1000,
            physical_address: 0,
            flags: 4,
            in_file: 0,
            len: PAGE,
            align: PAGE,
        };
        let few = head(&[segment; 3], b"");
        assert_eq!((&few[56..58], word(&few, 40)), (&[4, 0][..], 0));
        let many = head(&vec![segment; 70_000], b"");
        let section = usize::try_from(word(&many, 40)).expect("an offset");
        assert_eq!(many[56..64], [0xff, 0xff, 64, 0, 1, 0, 0, 0]);
        assert_eq!(section, 64 + 70_001 * 56);
        assert_eq!(many[section + 44..section + 48], 70_001_u32.to_le_bytes());
    }
}

//! The XSAVE area: what an FPU leaves in memory.
//!
//! A kernel on a CPU with XSAVES keeps it *compacted* (the components in use stand side by side);
//! every interface to user space, ptrace and KVM_SET_XSAVE among them, wants the *standard* format
//! (each component at its fixed place). Intel SDM volume 1, chapter 13; Linux
//! arch/x86/kernel/fpu/xstate.c.

use super::{Kernel, KernelError};

/// Components that XSTATE_BV can name; bits 62 and 63 are none.
const COMPONENTS: usize = 62;
/// The legacy area and the XSAVE header; components 2 and up stand behind them.
const EXTENDED: usize = 576;
const XSTATE_BV: usize = 512;
const XCOMP_BV: usize = 520;
const COMPACTED: u64 = 1 << 63;
const FP: u64 = 1;
const SSE: u64 = 2;
const YMM: u64 = 4;
const PKRU: usize = 9;

/// Where each component of the standard format stands, as the dead CPU enumerated it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct XsaveLayout {
    components: Vec<XsaveComponent>,
}

/// One component. CPUID leaf 0xd, subleaf = its number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct XsaveComponent {
    /// In the standard format; meaningless for supervisor state. Bytes.
    pub offset: u32,
    /// Bytes; 0: the CPU does not have it.
    pub size: u32,
    /// Only supervisor mode sees it: it has no place in the standard format.
    pub supervisor: bool,
    /// In the compacted format it begins at a multiple of 64 bytes.
    pub aligned: bool,
}

/// FPU registers one by one, as a debugger names them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FpuRegisters {
    /// x87 control word.
    pub control: u16,
    /// x87 status word.
    pub status: u16,
    /// A bit for each x87 register in use.
    pub tags: u8,
    /// ST0 to ST7: significand; sign and exponent.
    pub st: [(u64, u16); 8],
    /// Of SSE.
    pub mxcsr: u32,
    /// Words of each vector register that are known: 2, 4 or 8.
    pub width: usize,
    /// XMM, YMM or ZMM registers, the lowest word first.
    pub vectors: [[u64; 8]; 32],
    /// AVX-512's masks.
    pub masks: [u64; 8],
}

impl XsaveLayout {
    /// An area of the standard format with these registers. Those that the CPU has no place for are
    /// left out.
    #[must_use]
    pub fn assemble(&self, fpu: &FpuRegisters) -> Vec<u8> {
        const OPMASK: usize = 5;
        const ZMM_HIGH: usize = 6;
        const ZMM_16_UP: usize = 7;
        let mut out = vec![0; EXTENDED];
        out[..2].copy_from_slice(&fpu.control.to_le_bytes());
        out[2..4].copy_from_slice(&fpu.status.to_le_bytes());
        out[4] = fpu.tags;
        out[24..28].copy_from_slice(&fpu.mxcsr.to_le_bytes());
        for (place, (significand, exponent)) in out[32..160].chunks_exact_mut(16).zip(fpu.st) {
            place[..8].copy_from_slice(&significand.to_le_bytes());
            place[8..10].copy_from_slice(&exponent.to_le_bytes());
        }
        let words = |registers: std::ops::Range<usize>, words: std::ops::Range<usize>| -> Vec<u8> {
            let registers = &fpu.vectors[registers];
            let words = registers.iter().flat_map(|r| &r[words.clone()]);
            words.flat_map(|w| w.to_le_bytes()).collect()
        };
        out[160..416].copy_from_slice(&words(0..16, 0..2));
        let mut present = FP | SSE;
        let mut component = |number: usize, state: &[u8]| {
            let size = self.components.get(number).map_or(0, |c| c.size as usize);
            if size >= state.len() {
                self.put(&mut out, number, state);
                present |= 1 << number;
            }
        };
        if fpu.width >= 4 {
            component(2, &words(0..16, 2..4));
        }
        if fpu.width >= 8 {
            let masks: Vec<u8> = fpu.masks.iter().flat_map(|m| m.to_le_bytes()).collect();
            component(OPMASK, &masks);
            component(ZMM_HIGH, &words(0..16, 4..8));
            component(ZMM_16_UP, &words(16..32, 0..8));
        }
        out[XSTATE_BV..XSTATE_BV + 8].copy_from_slice(&present.to_le_bytes());
        out
    }

    /// A layout from the components 2 and up, by their number; what is missing does not exist.
    #[must_use]
    pub fn new(components: impl IntoIterator<Item = (usize, XsaveComponent)>) -> XsaveLayout {
        let mut layout = XsaveLayout {
            components: vec![XsaveComponent::default(); COMPONENTS],
        };
        for (number, component) in components {
            if let Some(place) = layout.components.get_mut(number).filter(|_| number >= 2) {
                *place = component;
            }
        }
        layout
    }

    /// The layout that the dead kernel read from its CPU: `xstate_offsets`, `xstate_sizes` and
    /// `xstate_flags`. The last came with 6afbb58cc225 ("x86/fpu: Cache xfeature flags from CPUID")
    /// (in v5.18).
    pub fn of(kernel: &Kernel) -> Result<XsaveLayout, KernelError> {
        const FLAG_SUPERVISOR: u32 = 1;
        const FLAG_ALIGNED: u32 = 2;
        let (offsets, sizes) = (
            kernel.symbol("xstate_offsets")?,
            kernel.symbol("xstate_sizes")?,
        );
        let flags = kernel.symbol("xstate_flags").ok();
        // XFEATURE_MAX, which is the arrays' length, has grown over the years.
        let count = kernel
            .enum_value("xfeature", "XFEATURE_MAX")
            .and_then(|n| u64::try_from(n).ok())
            .unwrap_or(10)
            .min(COMPONENTS as u64);
        let mut components = Vec::new();
        for number in 2..count {
            let read = |array: u64| kernel.read_u32(array.wrapping_add(number * 4));
            let size = read(sizes)?;
            let flags = match flags {
                Some(flags) => read(flags)?,
                // What every CPU of those days answers: PT, PASID, CET, LBR are the
                // supervisor's; only the tiles of AMX, which came later, are aligned.
                None if matches!(number, 8 | 10..=16) => FLAG_SUPERVISOR,
                None => 0,
            };
            // A component that the CPU lacks has the size -1 (0 in older kernels).
            if size == 0 || size == u32::MAX {
                continue;
            }
            components.push((
                number as usize,
                XsaveComponent {
                    offset: read(offsets)?,
                    size,
                    supervisor: flags & FLAG_SUPERVISOR != 0,
                    aligned: flags & FLAG_ALIGNED != 0,
                },
            ));
        }
        Ok(XsaveLayout::new(components))
    }

    /// The standard format of `area`, which may be in either format, or a bare FXSAVE image.
    /// `features` are the components to keep (a mask as in XCR0). The result is as long as its
    /// components need, and at least 576 bytes. What is in its initial state is zero, but the
    /// control words of x87 and SSE. A component that `area` is too short for is left out.
    #[must_use]
    pub fn to_standard(&self, area: &[u8], features: u64) -> Vec<u8> {
        let mut out = vec![0; EXTENDED];
        let has_header = area.len() >= EXTENDED;
        let word = |at: usize| match area.get(at..at + 8).and_then(|b| b.try_into().ok()) {
            Some(bytes) if has_header => u64::from_le_bytes(bytes),
            _ => 0,
        };
        let compacted = word(XCOMP_BV) & COMPACTED != 0;
        let present = if has_header {
            word(XSTATE_BV) & features
        } else {
            FP | SSE
        };
        legacy(area, present, &mut out);

        let mut kept = present & (FP | SSE);
        let mut next = EXTENDED;
        for (number, component) in self.components.iter().enumerate().skip(2) {
            let size = component.size as usize;
            let bit = 1_u64 << number;
            let from = if compacted {
                if word(XCOMP_BV) & bit == 0 || size == 0 {
                    continue;
                }
                if component.aligned {
                    next = next.next_multiple_of(64);
                }
                let from = next;
                next = next.saturating_add(size);
                from
            } else {
                component.offset as usize
            };
            if present & bit == 0 || component.supervisor || size == 0 {
                continue;
            }
            if let Some(state) = area.get(from..from.saturating_add(size)) {
                self.put(&mut out, number, state);
                kept |= bit;
            }
        }
        out[XSTATE_BV..XSTATE_BV + 8].copy_from_slice(&kept.to_le_bytes());
        out
    }

    /// Sets the protection-key rights in an area of the standard format; kernels keep that register
    /// apart from the others (`thread.pkru`, `kvm_vcpu_arch.pkru`). False if the CPU has none.
    pub fn set_pkru(&self, standard: &mut Vec<u8>, pkru: u32) -> bool {
        let known = self.components.get(PKRU).is_some_and(|c| c.size >= 4);
        if known && standard.len() >= EXTENDED {
            self.put(standard, PKRU, &pkru.to_le_bytes());
            standard[XSTATE_BV + PKRU / 8] |= 1 << (PKRU % 8);
        }
        known
    }

    fn put(&self, out: &mut Vec<u8>, number: usize, state: &[u8]) {
        /// The largest area there is (AMX) has 11 KiB.
        const MOST: usize = 1 << 16;
        let component = self.components.get(number).copied().unwrap_or_default();
        let (start, end) = (
            component.offset as usize,
            component.offset as usize + component.size as usize,
        );
        if start < EXTENDED || end > MOST {
            return;
        }
        if out.len() < end {
            out.resize(end, 0);
        }
        out[start..start + state.len().min(end - start)]
            .copy_from_slice(&state[..state.len().min(end - start)]);
    }
}

/// The 512 bytes of FXSAVE, each part of which belongs to another component.
fn legacy(area: &[u8], present: u64, out: &mut [u8]) {
    const MXCSR: std::ops::Range<usize> = 24..32;
    let mut copy = |range: std::ops::Range<usize>| {
        if let Some(part) = area.get(range.clone()) {
            out[range].copy_from_slice(part);
        }
    };
    if present & FP != 0 {
        copy(0..24);
        copy(32..160);
    }
    if present & SSE != 0 {
        copy(160..416);
    }
    if present & (SSE | YMM) != 0 {
        copy(MXCSR);
    }
    if present & FP == 0 {
        out[..2].copy_from_slice(&0x37f_u16.to_le_bytes());
    }
    if present & (SSE | YMM) == 0 {
        out[24..28].copy_from_slice(&0x1f80_u32.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// AVX at 576, PKRU at 2688, an aligned component 17 and a supervisor one, 11.
    fn layout() -> XsaveLayout {
        let user = |offset, size, aligned| XsaveComponent {
            offset,
            size,
            supervisor: false,
            aligned,
        };
        let supervisor = XsaveComponent {
            offset: 0,
            size: 16,
            supervisor: true,
            aligned: false,
        };
        XsaveLayout::new([
            (2, user(576, 256, false)),
            (9, user(2688, 8, false)),
            (11, supervisor),
            (17, user(2752, 64, true)),
        ])
    }

    fn area(xstate_bv: u64, xcomp_bv: u64, len: usize) -> Vec<u8> {
        let mut area = vec![0; len];
        area[..2].copy_from_slice(&[0x7f, 0x02]);
        area[24..28].copy_from_slice(&[0xa0, 0x1f, 0, 0]);
        area[32] = 0x51;
        area[160] = 0x58;
        area[512..520].copy_from_slice(&xstate_bv.to_le_bytes());
        area[520..528].copy_from_slice(&xcomp_bv.to_le_bytes());
        area
    }

    #[test]
    fn compacted_components_go_to_their_places() {
        let all = 0b11 | 1 << 2 | 1 << 9 | 1 << 11 | 1 << 17;
        let mut compacted = area(all, COMPACTED | all, 1024);
        compacted[576] = 2; // AVX, 256 bytes
        compacted[832] = 9; // PKRU, 8 bytes
        compacted[840] = 11; // supervisor state, 16 bytes, ends at 856
        compacted[896] = 17; // the next multiple of 64
        let standard = layout().to_standard(&compacted, u64::MAX);
        assert_eq!(standard.len(), 2752 + 64);
        assert_eq!((standard[576], standard[2688], standard[2752]), (2, 9, 17));
        assert_eq!((standard[32], standard[160]), (0x51, 0x58));
        assert_eq!(standard[512..520], (all & !(1 << 11)).to_le_bytes());
        assert_eq!(standard[520..576], [0; 56], "no longer compacted");
    }

    #[test]
    fn a_component_in_its_initial_state_still_takes_room() {
        // XCOMP_BV says that AVX has room; XSTATE_BV that it was not written.
        let mut compacted = area(0b11 | 1 << 9, COMPACTED | 0b11 | 1 << 2 | 1 << 9, 1024);
        compacted[576] = 0xee;
        compacted[832] = 9;
        let standard = layout().to_standard(&compacted, u64::MAX);
        assert_eq!((standard[576], standard[2688]), (0, 9));
    }

    #[test]
    fn the_standard_format_stays_but_for_what_is_not_wanted() {
        let mut given = area(0b111 | 1 << 9, 0, 2696);
        given[576] = 2;
        given[2688] = 9;
        let standard = layout().to_standard(&given, 0b111);
        assert_eq!(standard.len(), 832);
        assert_eq!((standard[576], standard[512]), (2, 0b111));
    }

    #[test]
    fn initial_state_has_its_control_words() {
        let standard = layout().to_standard(&area(0, 0, 1024), u64::MAX);
        assert_eq!(standard[..2], [0x7f, 0x03]);
        assert_eq!(standard[24..28], [0x80, 0x1f, 0, 0]);
        assert_eq!((standard[32], standard[160]), (0, 0));
    }

    #[test]
    fn short_and_bare_areas() {
        let fxsave = &area(0, 0, 576)[..512];
        let standard = layout().to_standard(fxsave, u64::MAX);
        assert_eq!((standard[0], standard[160], standard[512]), (0x7f, 0x58, 3));
        let cut = layout().to_standard(&area(0b111, 0, 600), u64::MAX);
        assert_eq!(cut[512], 0b11, "AVX is not all there");
        assert_eq!(layout().to_standard(&[], u64::MAX).len(), 576);
    }

    #[test]
    fn registers_stand_where_a_cpu_puts_them() {
        let mut fpu = FpuRegisters {
            control: 0x37f,
            status: 0x3800,
            tags: 0x80,
            mxcsr: 0x1fa0,
            width: 4,
            ..FpuRegisters::default()
        };
        fpu.st[1] = (0x8000_0000_0000_0001, 0x3fff);
        fpu.vectors[1] = [10, 11, 12, 13, 14, 15, 16, 17];
        let area = layout().assemble(&fpu);
        assert_eq!(area[..5], [0x7f, 3, 0, 0x38, 0x80]);
        assert_eq!(area[24..26], [0xa0, 0x1f]);
        assert_eq!(
            (area[48], area[55], area[56], area[57]),
            (1, 0x80, 0xff, 0x3f)
        );
        assert_eq!((area[176], area[184]), (10, 11), "XMM1");
        assert_eq!((area[592], area[600]), (12, 13), "upper half of YMM1");
        assert_eq!(area[512], 0b111);
        assert_eq!(
            layout().to_standard(&area, u64::MAX),
            area,
            "it is of that format"
        );
    }

    #[test]
    fn pkru_is_set_where_the_cpu_has_it() {
        let mut standard = layout().to_standard(&area(0b11, 0, 576), u64::MAX);
        assert!(layout().set_pkru(&mut standard, 0x5555_5554));
        assert_eq!(standard[2688..2692], 0x5555_5554_u32.to_le_bytes());
        assert_eq!(standard[513], 1 << 1);
        assert!(!XsaveLayout::default().set_pkru(&mut standard, 1));
    }
}

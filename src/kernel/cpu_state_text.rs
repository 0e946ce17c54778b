//! The text of QEMU's `info registers -a`: what each CPU held, told by the hypervisor under which the
//! host ran. QEMU target/i386/cpu-dump.c, `x86_cpu_dump_state`.
//!
//! ```text
//! CPU#0
//! RAX=0000000000000000 RBX=… RCX=… RDX=…
//! R8 =… R9 =… R10=… R11=…
//! RIP=ffffffff81c00000 RFL=00000246 [---Z-P-] CPL=0 II=0 A20=1 SMM=0 HLT=1
//! CS =0010 0000000000000000 ffffffff 00af9b00 DPL=0 CS64 [-RA]
//! GDT=     fffffe0000001000 0000007f
//! CR0=80050033 CR2=… CR3=… CR4=…
//! FCW=037f FSW=0000 [ST=0] FTW=00 MXCSR=00001f80
//! FPR0=0000000000000000 0000 FPR1=…
//! YMM00=0000000000000000 0000000000000000 0000000000000000 0000000000000000
//! ```
//!
//! Every line must be understood: a misread register is worse than none.

use std::collections::HashMap;

use super::xsave::FpuRegisters;
use crate::dump::{QemuCpuState, QemuSegment};

/// Why such a text is not used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CpuTextError {
    /// It says no CPU at all.
    #[error("it has no line \"CPU#0\": it is not what QEMU's `info registers -a` prints")]
    NoCpu,
    /// A line that it does not print.
    #[error("line {line}: {detail}")]
    Line {
        /// From 1.
        line: usize,
        /// What is wrong with it.
        detail: String,
    },
    /// A CPU without a register that every CPU has.
    #[error("CPU#{cpu} has no {register} (is the text cut short, or the CPU in 32-bit mode?)")]
    Missing {
        /// QEMU's number of it.
        cpu: u32,
        /// The register.
        register: String,
    },
}

/// One CPU of the text.
#[derive(Clone, Debug, PartialEq)]
pub struct CpuText {
    /// QEMU's number of it.
    pub cpu: u32,
    /// General, segment and control registers.
    pub registers: QemuCpuState,
    /// DR0 to DR3.
    pub debug: [u64; 4],
    /// x87, SSE, AVX registers; `None` where the order of the x87 stack cannot be told.
    pub fpu: Option<FpuRegisters>,
}

/// No machine has more.
const MOST_CPUS: usize = 8192;

/// Reads it.
///
/// # Errors
/// The first thing that is not as QEMU prints it.
pub fn parse(text: &str) -> Result<Vec<CpuText>, CpuTextError> {
    let mut cpus = Vec::new();
    let mut current: Option<(u32, Items)> = None;
    for (number, line) in (1..).zip(text.lines()) {
        let wrong = |detail: String| CpuTextError::Line {
            line: number,
            detail,
        };
        let line = line.trim();
        if line.is_empty() {
            continue;
        }
        if let Some(cpu) = line.strip_prefix("CPU#") {
            if let Some((cpu, items)) = current.take() {
                cpus.push(cpu_text(cpu, &items)?);
            }
            let cpu: u32 = cpu
                .parse()
                .map_err(|_| wrong(format!("no number of a CPU: {cpu:?}")))?;
            if cpus.len() >= MOST_CPUS || cpus.iter().any(|known| known.cpu == cpu) {
                return Err(wrong(format!("CPU#{cpu} once more")));
            }
            current = Some((cpu, Items::new()));
            continue;
        }
        let Some((_, items)) = &mut current else {
            return Err(CpuTextError::NoCpu);
        };
        for (key, values) in split(line).map_err(wrong)? {
            if !known(&key) {
                return Err(wrong(format!("{key:?} is no register")));
            }
            if items.insert(key.clone(), values).is_some() && !REPEATED.contains(&key.as_str()) {
                return Err(wrong(format!("{key} once more")));
            }
        }
    }
    match current {
        Some((cpu, items)) => cpus.push(cpu_text(cpu, &items)?),
        None => return Err(CpuTextError::NoCpu),
    }
    Ok(cpus)
}

/// A register's name, and the words behind its `=`.
type Items = HashMap<String, Vec<String>>;

/// So many hexadecimal words of a register.
type ReadWords<'a> = dyn Fn(&str, usize) -> Result<Vec<u64>, CpuTextError> + 'a;

/// Stands behind every segment.
const REPEATED: [&str; 1] = ["DPL"];

const SEGMENTS: [&str; 8] = ["ES", "CS", "SS", "DS", "FS", "GS", "LDT", "TR"];

fn known(key: &str) -> bool {
    const OTHERS: [&str; 28] = [
        "RAX", "RBX", "RCX", "RDX", "RSI", "RDI", "RBP", "RSP", "RIP", "RFL", "CPL", "II", "A20",
        "SMM", "HLT", "DPL", "GDT", "IDT", "EFER", "FCW", "FSW", "FTW", "MXCSR", "CCS", "CCD",
        "CCO", "Code", "DR",
    ];
    let numbered = |prefix: &str, least: u32, most: u32| {
        key.strip_prefix(prefix)
            .and_then(|n| n.parse::<u32>().ok())
            .is_some_and(|n| (least..=most).contains(&n))
    };
    OTHERS.contains(&key)
        || SEGMENTS.contains(&key)
        || numbered("R", 8, 31)
        || numbered("CR", 0, 4)
        || numbered("DR", 0, 7)
        || numbered("FPR", 0, 7)
        || numbered("Opmask", 0, 7)
        || numbered("XMM", 0, 15)
        || numbered("YMM", 0, 15)
        || numbered("ZMM", 0, 31)
}

/// `KEY=word word KEY=word …`; `[…]` is a comment for people.
fn split(line: &str) -> Result<Vec<(String, Vec<String>)>, String> {
    let mut items: Vec<(String, Vec<String>)> = Vec::new();
    // "R8 =…", "ES =…": the names are padded.
    for word in line.replace(" =", "=").split_whitespace() {
        if word.starts_with('[') || word.ends_with(']') {
            continue;
        }
        match (word.split_once('='), items.last_mut()) {
            (Some((key, value)), _) => {
                let values = (!value.is_empty()).then(|| value.to_owned());
                items.push((key.to_owned(), values.into_iter().collect()));
            }
            (None, Some((_, values))) => values.push(word.to_owned()),
            (None, None) => return Err(format!("it begins with {word:?}")),
        }
    }
    Ok(items)
}

fn cpu_text(cpu: u32, items: &Items) -> Result<CpuText, CpuTextError> {
    let words = |register: &str, count: usize| -> Result<Vec<u64>, CpuTextError> {
        let missing = || CpuTextError::Missing {
            cpu,
            register: register.to_owned(),
        };
        let words = items.get(register).ok_or_else(missing)?;
        let words = words.get(..count).ok_or_else(missing)?;
        words
            .iter()
            .map(|word| u64::from_str_radix(word, 16).map_err(|_| missing()))
            .collect()
    };
    let one = |register: &str| Ok(words(register, 1)?.first().copied().unwrap_or_default());
    let segment = |register: &str| -> Result<QemuSegment, CpuTextError> {
        let words = words(register, 4)?;
        let narrow = |i: usize| {
            u32::try_from(words[i]).map_err(|_| CpuTextError::Missing {
                cpu,
                register: register.to_owned(),
            })
        };
        Ok(QemuSegment {
            selector: narrow(0)?,
            base: words[1],
            limit: narrow(2)?,
            flags: narrow(3)?,
        })
    };
    let table = |register: &str| -> Result<QemuSegment, CpuTextError> {
        let words = words(register, 2)?;
        Ok(QemuSegment {
            base: words[0],
            limit: u32::try_from(words[1]).unwrap_or(u32::MAX),
            ..QemuSegment::default()
        })
    };
    let mut registers = QemuCpuState {
        version: 1,
        rax: one("RAX")?,
        rbx: one("RBX")?,
        rcx: one("RCX")?,
        rdx: one("RDX")?,
        rsi: one("RSI")?,
        rdi: one("RDI")?,
        rsp: one("RSP")?,
        rbp: one("RBP")?,
        rip: one("RIP")?,
        rflags: one("RFL")?,
        es: segment("ES")?,
        cs: segment("CS")?,
        ss: segment("SS")?,
        ds: segment("DS")?,
        fs: segment("FS")?,
        gs: segment("GS")?,
        ldt: segment("LDT")?,
        tr: segment("TR")?,
        gdt: table("GDT")?,
        idt: table("IDT")?,
        cr: [one("CR0")?, 0, one("CR2")?, one("CR3")?, one("CR4")?],
        // It is not printed.
        kernel_gs_base: None,
        ..QemuCpuState::default()
    };
    for (number, register) in (8..).zip(&mut registers.r8_to_r15) {
        *register = one(&format!("R{number}"))?;
    }
    let mut debug = [0; 4];
    for (number, register) in debug.iter_mut().enumerate() {
        *register = one(&format!("DR{number}"))?;
    }
    Ok(CpuText {
        cpu,
        registers,
        debug,
        fpu: fpu(items, &words)?,
    })
}

fn fpu(items: &Items, words: &ReadWords<'_>) -> Result<Option<FpuRegisters>, CpuTextError> {
    /// TOP of the status word.
    const TOP: u16 = 7 << 11;
    let one = |register: &str| Ok(words(register, 1)?.first().copied().unwrap_or_default());
    let narrow = |value: u64| u16::try_from(value).unwrap_or_default();
    let mut fpu = FpuRegisters {
        control: narrow(one("FCW")?),
        status: narrow(one("FSW")?),
        tags: narrow(one("FTW")?) as u8,
        mxcsr: u32::try_from(one("MXCSR")?).unwrap_or_default(),
        ..FpuRegisters::default()
    };
    for (number, register) in fpu.st.iter_mut().enumerate() {
        let value = words(&format!("FPR{number}"), 2)?;
        *register = (value[0], narrow(value[1]));
    }
    // QEMU prints its own array. With TCG that is in the order of the registers, with KVM in that of
    // the stack; both are the same when the stack's top is register 0.
    if fpu.tags != 0 && fpu.status & TOP != 0 {
        return Ok(None);
    }
    let (name, count, width) = if items.contains_key("ZMM00") {
        ("ZMM", 32, 8)
    } else if items.contains_key("YMM00") {
        ("YMM", 16, 4)
    } else {
        ("XMM", 16, 2)
    };
    fpu.width = width;
    for (number, register) in fpu.vectors.iter_mut().enumerate().take(count) {
        let value = vector(items, &format!("{name}{number:02}"), width, words)?;
        // The highest word comes first.
        for (to, from) in register.iter_mut().zip(value.iter().rev()) {
            *to = *from;
        }
    }
    if width == 8 {
        for (number, mask) in fpu.masks.iter_mut().enumerate() {
            *mask = one(&format!("Opmask{number:02}"))?;
        }
    }
    Ok(Some(fpu))
}

/// A vector register; older QEMUs print XMM registers as one word of 32 digits.
fn vector(
    items: &Items,
    name: &str,
    width: usize,
    words: &ReadWords<'_>,
) -> Result<Vec<u64>, CpuTextError> {
    if let Some([whole]) = items.get(name).map(Vec::as_slice)
        && let Some((high, low)) = whole.split_at_checked(16)
        && let (Ok(high), Ok(low)) = (u64::from_str_radix(high, 16), u64::from_str_radix(low, 16))
        && width == 2
    {
        return Ok(vec![high, low]);
    }
    words(name, width)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As QEMU 7.2 prints a CPU in a guest's user mode.
    fn text() -> String {
        let mut text = String::from(
            "\nCPU#1\n\
             RAX=0000000053e64581 RBX=00007f84ae419070 RCX=00007f84ae418f80 RDX=0000000000000003\n\
             RSI=0000000000000004 RDI=0000000053e72b00 RBP=0000000000000000 RSP=00007f84ae418f70\n\
             R8 =0000000000053501 R9 =0400000080000000 R10=6080000000000035 R11=2011000c1d1a1006\n\
             R12=0000555563e36ad0 R13=0000555563e36ad8 R14=0000000000000000 R15=00007f84b0869ab0\n\
             RIP=00007f84b077968d RFL=00000202 [-------] CPL=3 II=0 A20=1 SMM=0 HLT=0\n\
             ES =0000 0000000000000000 00000000 00000000\n\
             CS =0033 0000000000000000 ffffffff 00af9b00 DPL=0 CS64 [-RA]\n\
             SS =002b 0000000000000000 ffffffff 00cff300 DPL=3 DS   [-WA]\n\
             DS =0000 0000000000000000 00000000 00000000\n\
             FS =0000 00007f84ae4196c0 00000000 00000000\n\
             GS =0000 0000000000000000 00000000 00000000\n\
             LDT=0000 0000000000000000 00000000 00008200 DPL=0 LDT\n\
             TR =0040 fffffe0000003000 00004087 00008900 DPL=0 TSS64-avl\n\
             GDT=     fffffe0000001000 0000007f\n\
             IDT=     fffffe0000000000 00000fff\n\
             CR0=80050033 CR2=00007f84b0700000 CR3=00000000028d4000 CR4=000006f0\n\
             DR0=0000000000000001 DR1=0000000000000000 DR2=0000000000000000 DR3=0000000000000000 \n\
             DR6=00000000ffff0ff0 DR7=0000000000000400\n\
             EFER=0000000000000d01\n\
             FCW=037f FSW=0000 [ST=0] FTW=00 MXCSR=00001fa0\n",
        );
        for number in (0..8).step_by(2) {
            text += &format!(
                "FPR{number}=8000000000000000 3fff FPR{}=0000000000000000 0000\n",
                number + 1
            );
        }
        for number in 0..16 {
            text += &format!("YMM{number:02}=000000000000000{0:x} 3 2 1\n", number);
        }
        text
    }

    #[test]
    fn a_cpu_is_read_whole() {
        let cpus = parse(&text()).unwrap();
        let [cpu] = cpus.as_slice() else {
            panic!("{cpus:?}")
        };
        assert_eq!(cpu.cpu, 1);
        let r = &cpu.registers;
        assert_eq!(
            (r.rax, r.rip, r.rflags),
            (0x53e6_4581, 0x7f84_b077_968d, 0x202)
        );
        assert_eq!(
            (r.r8_to_r15[0], r.r8_to_r15[7]),
            (0x53501, 0x7f84_b086_9ab0)
        );
        assert_eq!(
            (r.cs.selector, r.cs.flags, r.cs.limit),
            (0x33, 0xaf_9b00, u32::MAX)
        );
        assert_eq!((r.fs.base, r.tr.limit), (0x7f84_ae41_96c0, 0x4087));
        assert_eq!((r.gdt.base, r.idt.limit), (0xffff_fe00_0000_1000, 0xfff));
        assert_eq!(r.cr, [0x8005_0033, 0, 0x7f84_b070_0000, 0x28d_4000, 0x6f0]);
        assert_eq!(cpu.debug, [1, 0, 0, 0]);
        let fpu = cpu.fpu.as_ref().unwrap();
        assert_eq!((fpu.control, fpu.mxcsr, fpu.width), (0x37f, 0x1fa0, 4));
        assert_eq!(fpu.st[0], (1 << 63, 0x3fff));
        assert_eq!(fpu.vectors[5][..4], [1, 2, 3, 5]);
    }

    #[test]
    fn older_and_wider_vector_registers() {
        let old = text()
            .lines()
            .map(|line| match line.strip_prefix("YMM") {
                Some(rest) => format!("XMM{}=0000000000000007000000000000000a\n", &rest[..2]),
                None => format!("{line}\n"),
            })
            .collect::<String>();
        let fpu = parse(&old).unwrap().remove(0).fpu.unwrap();
        assert_eq!((fpu.width, &fpu.vectors[15][..2]), (2, &[10, 7][..]));
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for (from, to) in [
            ("RAX=", "RQX="),
            ("CPU#1", "CPU#x"),
            ("CPU#1", "cpu 1"),
            ("R12=0000555563e36ad0", ""),
            ("R12=0000555563e36ad0", "R12=zz"),
            ("CS =0033 0000000000000000 ffffffff", "CS =0033"),
            ("FCW=037f", "FCW=037f FCW=037f"),
            ("YMM07=", "YMM77="),
            ("CPU#1\n", "CPU#1\nnonsense\n"),
        ] {
            assert!(
                parse(&text().replacen(from, to, 1)).is_err(),
                "{from} → {to}"
            );
        }
        assert_eq!(parse(""), Err(CpuTextError::NoCpu));
        assert!(parse(&(text() + &text())).is_err(), "one CPU twice");
    }

    #[test]
    fn no_damage_to_the_text_does_more_than_be_refused() {
        let whole = text();
        for at in 0..whole.len() {
            let (before, after) = whole.split_at(at);
            let _ = parse(before);
            for with in ["", "=", " ", "\n", "f", "[", "\u{e9}", "CPU#0\n"] {
                let _ = parse(&format!("{before}{with}{}", &after[1..]));
            }
        }
    }

    #[test]
    fn an_x87_stack_whose_order_is_unknown_is_not_used() {
        let text = text().replace("FSW=0000 [ST=0] FTW=00", "FSW=3800 [ST=7] FTW=80");
        assert_eq!(parse(&text).unwrap()[0].fpu, None);
    }
}

//! The notes of a process's core, as the kernel writes them (Linux
//! fs/binfmt_elf.c): those of the process between those of its first thread.

use super::elf::{Status, note};
use crate::dataset::{Dataset, MappingKind, Process, RunState, Thread};

const NT_FPREGSET: u32 = 2;
const NT_PRPSINFO: u32 = 3;
const NT_AUXV: u32 = 6;
const NT_X86_XSTATE: u32 = 0x202;
const NT_FILE: u32 = 0x4649_4c45;
const NT_SIGINFO: u32 = 0x5349_4749;
/// `siginfo_t`. Bytes.
const SIGINFO: usize = 128;
/// `struct user_i387_struct`, which an XSAVE area begins with. Bytes.
const FXSAVE: usize = 512;
/// Where an XSAVE area has the XCR0 that it was made with, and XSTATE_BV.
const XCR0: usize = 464;
const XSTATE_BV: usize = 512;

/// All notes.
pub(super) fn notes(dataset: &Dataset, process: &Process) -> Vec<u8> {
    let mut out = Vec::new();
    for (n, thread) in process.threads.iter().enumerate() {
        status(process, thread).put(&mut out);
        if n == 0 {
            note(&mut out, b"CORE\0", NT_PRPSINFO, &info(process, thread));
            // It was not killed by a signal.
            note(&mut out, b"CORE\0", NT_SIGINFO, &[0; SIGINFO]);
            note(&mut out, b"CORE\0", NT_AUXV, &auxv(process));
            note(&mut out, b"CORE\0", NT_FILE, &files(dataset, process));
        }
        let area = xsave(thread);
        let (old, _) = area.split_at(FXSAVE);
        note(&mut out, b"CORE\0", NT_FPREGSET, old);
        note(&mut out, b"LINUX\0", NT_X86_XSTATE, &area);
    }
    out
}

fn status(process: &Process, thread: &Thread) -> Status {
    let r = &thread.regs;
    let pending = thread.pending.iter().chain(&process.pending);
    let bit = |signal: u32| match signal {
        1..=64 => 1_u64 << (signal - 1),
        _ => 0,
    };
    Status {
        pending: pending.fold(0, |set, p| set | bit(p.signal)),
        blocked: thread.sigmask,
        pid: thread.tid.cast_unsigned(),
        ppid: process.ppid.cast_unsigned(),
        pgid: process.pgid.cast_unsigned(),
        sid: process.sid.cast_unsigned(),
        has_fpu: true,
        registers: [
            r.r15, r.r14, r.r13, r.r12, r.rbp, r.rbx, r.r11, r.r10, r.r9, r.r8, r.rax, r.rcx,
            r.rdx, r.rsi, r.rdi, r.orig_rax, r.rip, r.cs, r.rflags, r.rsp, r.ss, r.fs_base,
            r.gs_base, r.ds, r.es, r.fs, r.gs,
        ],
    }
}

/// `struct elf_prpsinfo` of x86-64.
fn info(process: &Process, leader: &Thread) -> Vec<u8> {
    const SIZE: usize = 136;
    let state = match leader.run_state {
        _ if process.stopped => b'T',
        RunState::InSyscall => b'S',
        _ => b'R',
    };
    let number = b"RSDTZW".iter().position(|s| *s == state).unwrap_or(0);
    let mut out = vec![
        u8::try_from(number).unwrap_or(0),
        state,
        0,
        leader.scheduling.nice.to_le_bytes()[0],
    ];
    // Flags behind padding.
    out.resize(16, 0);
    for word in [leader.credentials.uid[0], leader.credentials.gid[0]] {
        out.extend(word.to_le_bytes());
    }
    for word in [process.pid, process.ppid, process.pgid, process.sid] {
        out.extend(word.to_le_bytes());
    }
    let mut text = |text: &str, room: usize| {
        let end = out.len() + room;
        out.extend(text.bytes().take(room - 1));
        out.resize(end, 0);
    };
    text(&process.comm, 16);
    text(&process.cmdline.join(" "), SIZE - 56);
    out
}

/// Up to and with AT_NULL.
fn auxv(process: &Process) -> Vec<u8> {
    let pairs = process.mm.auxv.chunks_exact(2);
    let mut out: Vec<u8> = pairs
        .take_while(|pair| pair[0] != 0)
        .flatten()
        .flat_map(|word| word.to_le_bytes())
        .collect();
    out.resize(out.len() + 16, 0);
    out
}

/// Which files were mapped where.
fn files(dataset: &Dataset, process: &Process) -> Vec<u8> {
    const PAGE: u64 = super::PAGE;
    let mut ranges = Vec::new();
    let mut names = Vec::new();
    let mut count = 0_u64;
    for vma in &process.mm.vmas {
        let (path, deleted, offset) = match &vma.kind {
            MappingKind::File {
                file,
                inode,
                offset,
            } => match (dataset.file(*file), dataset.inode(*inode)) {
                (Some(file), _) => (&file.path, file.deleted, *offset),
                (None, Some(inode)) => (&inode.path, inode.links == 0, *offset),
                (None, None) => continue,
            },
            MappingKind::Device { path, offset, .. } => (path, false, *offset),
            _ => continue,
        };
        count += 1;
        for word in [vma.start, vma.end, offset / PAGE] {
            ranges.extend(word.to_le_bytes());
        }
        names.extend(path.bytes().filter(|byte| *byte != 0));
        if deleted {
            names.extend(b" (deleted)");
        }
        names.push(0);
    }
    let mut out = Vec::with_capacity(16 + ranges.len() + names.len());
    for word in [count, PAGE] {
        out.extend(word.to_le_bytes());
    }
    out.append(&mut ranges);
    out.append(&mut names);
    out
}

/// The XSAVE area, as long as one with all that the CPU had: gdb takes what its
/// registers are from XCR0, and wants room for all of them.
fn xsave(thread: &Thread) -> Vec<u8> {
    /// Ends of the components in the standard format: AVX, MPX, AVX-512, PKRU.
    const ENDS: [(u64, usize); 4] = [
        (1 << 2, 832),
        (3 << 3, 1088),
        (7 << 5, 2688),
        (1 << 9, 2696),
    ];
    const HEADER_END: usize = 576;
    let mut area = match &thread.xsave {
        Some(area) => area.0.clone(),
        None => {
            // As after FNINIT.
            let mut area = vec![0; HEADER_END];
            area[..2].copy_from_slice(&0x37f_u16.to_le_bytes());
            area[24..28].copy_from_slice(&0x1f80_u32.to_le_bytes());
            area
        }
    };
    if area.len() < HEADER_END {
        area.resize(HEADER_END, 0);
        // It is what FXSAVE wrote.
        area[XSTATE_BV] = 3;
    }
    let word = |at: usize| {
        let bytes = area.get(at..at + 8).and_then(|b| b.try_into().ok());
        bytes.map_or(0, u64::from_le_bytes)
    };
    let features = word(XCR0) | word(XSTATE_BV) | 3;
    let end = ENDS
        .iter()
        .filter(|(bits, _)| features & bits != 0)
        .map(|(_, end)| *end)
        .fold(area.len(), usize::max);
    area.resize(end, 0);
    area[XCR0..XCR0 + 8].copy_from_slice(&features.to_le_bytes());
    area
}

//! What `task` reads of processes, against what the kernel counted of them and what their own
//! memory says. And: whatever is damaged in the dump, reading ends with an answer or an error.
//!
//! Needs a dump that holds user memory (`makedumpfile -d 17`):
//! `VMRESTORE_TEST_DUMP=vmcore cargo test --test task_dumps -- --ignored`.

#![allow(missing_docs)]

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use vmrestore::dataset::{MappingKind, PageContent, Process, RunState, SyscallResume, Vma};
use vmrestore::dump::{Dump, PageState, PhysicalMemory, ReadError};
use vmrestore::kernel::{Kernel, Object};
use vmrestore::task::{self, ProcessSummary};

const NEEDS: &str = "VMRESTORE_TEST_DUMP must name a dump";

fn dump() -> Dump {
    let path = std::env::var_os("VMRESTORE_TEST_DUMP").expect(NEEDS);
    Dump::open(path.as_ref()).unwrap()
}

fn open() -> Kernel {
    let dump = dump();
    let info = dump.vmcoreinfo().expect("a VMCOREINFO note").to_owned();
    Kernel::open(Arc::new(dump), &info).unwrap()
}

fn user_processes(kernel: &Kernel) -> Vec<ProcessSummary> {
    let all = task::processes(kernel).unwrap();
    assert!(all.len() > 20, "a host has kernel threads: {}", all.len());
    all.into_iter()
        .filter(|p| !p.kernel_thread && !matches!(p.state, 'Z' | 'X'))
        .collect()
}

fn extract_one(kernel: &Kernel, pid: i32) -> Process {
    let mut found = task::extract(kernel, &[pid]).unwrap();
    assert_eq!(found.processes.len(), 1);
    found.processes.remove(0)
}

fn mm<'k>(kernel: &'k Kernel, process: &ProcessSummary) -> Object<'k> {
    kernel
        .object("task_struct", process.task)
        .unwrap()
        .follow("mm")
        .unwrap()
}

fn vma_at(process: &Process, address: u64) -> Option<&Vma> {
    process
        .mm
        .vmas
        .iter()
        .find(|v| v.start <= address && address < v.end)
}

/// A counter of the kernel's own, exact: MM_ANONPAGES 1, MM_SWAPENTS 2.
fn counted(kernel: &Kernel, mm: &Object<'_>, which: u32) -> i64 {
    if mm.has("rss_stat.count") {
        return mm.i(&format!("rss_stat.count[{which}].counter")).unwrap();
    }
    let counter = mm.get(&format!("rss_stat[{which}]")).unwrap();
    let per_cpu = counter.ptr("counters").unwrap();
    let parts: i64 = kernel
        .cpus()
        .unwrap()
        .into_iter()
        .map(|cpu| {
            let at = kernel.per_cpu(per_cpu, cpu).unwrap();
            i64::from(kernel.read_u32(at).unwrap().cast_signed())
        })
        .sum();
    counter.i("count").unwrap() + parts
}

/// Pages that each thread may still add to the counters on its own (Linux before 6.2,
/// TASK_RSS_EVENTS_THRESH).
const UNSYNCHRONISED: i64 = 64;

#[test]
#[ignore = "needs a dump: set VMRESTORE_TEST_DUMP"]
fn as_many_anonymous_and_swapped_pages_as_the_kernel_counted() {
    let kernel = open();
    for summary in user_processes(&kernel) {
        let process = extract_one(&kernel, summary.pid);
        let (mut anonymous, mut swapped) = (0, 0);
        // Huge pages of hugetlbfs are counted elsewhere.
        for vma in process.mm.vmas.iter().filter(|v| v.flags & 0x40_0000 == 0) {
            for run in &vma.pages {
                match run.content {
                    PageContent::Swap { .. } => swapped += run.count,
                    _ => anonymous += run.count,
                }
            }
        }
        let mm = mm(&kernel, &summary);
        let counted_anonymous = counted(&kernel, &mm, 1) + counted(&kernel, &mm, 2);
        let slack = UNSYNCHRONISED * i64::from(summary.threads);
        let found = i64::try_from(anonymous + swapped).unwrap();
        assert!(
            (found - counted_anonymous).abs() <= slack,
            "{} ({}): {anonymous} anonymous and {swapped} swapped pages, the kernel counted {counted_anonymous}",
            summary.pid,
            summary.comm,
        );
    }
}

#[test]
#[ignore = "needs a dump: set VMRESTORE_TEST_DUMP"]
fn what_the_loader_was_told_is_mapped_there() {
    const AT_PHDR: u64 = 3;
    const AT_ENTRY: u64 = 9;
    const AT_SYSINFO_EHDR: u64 = 33;
    const AT_EXECFN: u64 = 31;
    let kernel = open();
    let mut checked = 0;
    for summary in user_processes(&kernel) {
        let process = extract_one(&kernel, summary.pid);
        let auxv: HashMap<u64, u64> = process
            .mm
            .auxv
            .chunks_exact(2)
            .map(|pair| (pair[0], pair[1]))
            .collect();
        assert_eq!(process.mm.auxv.last(), Some(&0));
        let entry = vma_at(&process, auxv[&AT_ENTRY]).expect("AT_ENTRY is mapped");
        assert_eq!(entry.flags & 4, 4, "AT_ENTRY is executable");
        assert!(vma_at(&process, auxv[&AT_PHDR]).is_some());
        let vdso = vma_at(&process, auxv[&AT_SYSINFO_EHDR]).expect("the vDSO is mapped");
        assert_eq!(vdso.kind, MappingKind::Vdso);
        assert_eq!(vdso.start, process.mm.vdso);

        // The name by which it was executed stands on its stack.
        let mut name = [0; 1];
        task::read_process_memory(&kernel, summary.pid, auxv[&AT_EXECFN], &mut name).unwrap();
        assert_ne!(name, [0]);
        let stack = vma_at(&process, auxv[&AT_EXECFN]).unwrap();
        assert!(matches!(
            stack.kind,
            MappingKind::Anonymous { stack: true, .. }
        ));
        checked += 1;
    }
    assert!(checked > 0);
}

#[test]
#[ignore = "needs a dump: set VMRESTORE_TEST_DUMP"]
fn threads_stand_in_their_code_and_on_their_stacks() {
    let kernel = open();
    for summary in user_processes(&kernel) {
        let process = extract_one(&kernel, summary.pid);
        assert_eq!(
            process.threads.first().map(|t| t.tid),
            Some(summary.pid),
            "the leader comes first"
        );
        for thread in &process.threads {
            let at = format!("{} thread {}", summary.comm, thread.tid);
            let regs = &thread.regs;
            let code = vma_at(&process, regs.rip).unwrap_or_else(|| panic!("{at}: rip"));
            assert_eq!(code.flags & 4, 4, "{at}: rip is executable");
            let stack = vma_at(&process, regs.rsp).unwrap_or_else(|| panic!("{at}: rsp"));
            assert_eq!(stack.flags & 2, 2, "{at}: rsp is writable");
            assert_eq!(regs.rflags & 0x200, 0x200, "{at}: interrupts are on");
            let in_user = matches!(
                thread.run_state,
                RunState::OnCpuUser { .. } | RunState::PreemptedUser
            );
            assert_eq!(in_user, thread.syscall.is_none(), "{at}");
            if let Some(call) = &thread.syscall
                && call.number != 15
            {
                // rcx is the address behind `syscall`, r11 the flags: the CPU put them there.
                assert_eq!(regs.rcx, regs.rip, "{at}: {}", call.name);
                assert_eq!(regs.r11, regs.rflags, "{at}: {}", call.name);
                // The instruction itself, where it can be read.
                let mut code = [0; 2];
                if task::read_process_memory(&kernel, summary.pid, regs.rip - 2, &mut code).is_ok()
                {
                    assert_eq!(code, [0x0f, 0x05], "{at}: syscall");
                }
            } else {
                assert_eq!(thread.resume, SyscallResume::UserMode, "{at}");
            }
            let xsave = &thread.xsave.as_ref().expect("FPU state").0;
            assert!(xsave.len() >= 576 && xsave.len() % 4 == 0, "{at}");
            // MXCSR: its upper half is reserved. XCOMP_BV: the standard format.
            assert_eq!(&xsave[26..28], &[0, 0], "{at}: MXCSR");
            assert_eq!(&xsave[520..528], &[0; 8], "{at}: XCOMP_BV");
        }
    }
}

#[test]
#[ignore = "needs a dump: set VMRESTORE_TEST_DUMP"]
fn a_set_keeps_what_it_shares() {
    let kernel = open();
    let pids: Vec<i32> = user_processes(&kernel).iter().map(|p| p.pid).collect();
    let all = task::extract(&kernel, &pids).unwrap();
    assert_eq!(all.processes.len(), pids.len());
    let mut ids: Vec<_> = all.files.iter().map(|f| f.id).collect();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), all.files.len(), "no file is there twice");
    for (at, process) in all.processes.iter().enumerate() {
        for fd in &process.fds {
            assert!(all.files.iter().any(|f| f.id == fd.file));
        }
        let parent = all.processes.iter().position(|p| p.pid == process.ppid);
        assert!(
            parent.is_none_or(|parent| parent < at),
            "parents come first"
        );
        let mut end = 0;
        for vma in &process.mm.vmas {
            assert!(vma.start >= end && vma.end > vma.start);
            end = vma.end;
            let mut page = vma.start;
            for run in &vma.pages {
                assert!(run.start >= page && run.count > 0);
                page = run.start + run.count * 4096;
                assert!(page <= vma.end);
            }
        }
    }
    for file in &all.files {
        if let Some(inode) = file.inode {
            assert!(all.inodes.iter().any(|i| i.id == inode));
        }
    }
}

/// A dump in which some reads are damaged.
struct Damaged {
    dump: Dump,
    /// 0: whole. Else one page in this many is damaged, which ones depends on `seed`.
    one_in: AtomicU64,
    seed: AtomicU64,
}

fn mix(mut n: u64) -> u64 {
    n = (n ^ (n >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    n = (n ^ (n >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    n ^ (n >> 31)
}

impl PhysicalMemory for Damaged {
    fn read_physical(&self, addr: u64, buf: &mut [u8]) -> Result<(), ReadError> {
        self.dump.read_physical(addr, buf)?;
        let (one_in, seed) = (
            self.one_in.load(Ordering::Relaxed),
            self.seed.load(Ordering::Relaxed),
        );
        for (i, byte) in buf.iter_mut().enumerate() {
            let at = addr + i as u64;
            // One word in so many is replaced, by zeros, ones, noise, or a bit.
            let dice = mix(seed ^ (at / 8));
            if one_in > 0 && dice.is_multiple_of(one_in) {
                *byte = match dice >> 32 & 3 {
                    0 => 0,
                    1 => 0xff,
                    2 => mix(dice ^ at) as u8,
                    _ => *byte ^ 1 << (dice >> 40 & 7),
                };
            }
        }
        Ok(())
    }

    fn page_state(&self, pfn: u64) -> PageState {
        self.dump.page_state(pfn)
    }

    fn max_pfn(&self) -> u64 {
        self.dump.max_pfn()
    }
}

#[test]
#[ignore = "needs a dump: set VMRESTORE_TEST_DUMP"]
fn damage_ends_in_an_answer_or_an_error() {
    let dump = dump();
    let info = dump.vmcoreinfo().expect("a VMCOREINFO note").to_owned();
    let memory = Arc::new(Damaged {
        dump,
        one_in: AtomicU64::new(0),
        seed: AtomicU64::new(0),
    });
    let whole = Kernel::open(memory.clone(), &info).unwrap();
    let pids: Vec<i32> = user_processes(&whole).iter().map(|p| p.pid).collect();
    drop(whole);
    let (mut answers, mut errors) = (0, 0);
    for seed in 0..60u64 {
        memory.one_in.store(0, Ordering::Relaxed);
        let kernel = Kernel::open(memory.clone(), &info).unwrap();
        memory.seed.store(mix(seed), Ordering::Relaxed);
        memory
            .one_in
            .store([30_000, 3_000, 300][(seed % 3) as usize], Ordering::Relaxed);
        let start = Instant::now();
        let listed = task::processes(&kernel).map(|all| all.len());
        let host = task::host(&kernel).is_ok();
        for pid in &pids {
            match task::extract(&kernel, &[*pid]) {
                Ok(found) => {
                    answers += 1;
                    drop(serde_json::to_string(&found.processes).unwrap());
                }
                Err(error) => {
                    errors += 1;
                    assert!(!error.to_string().is_empty());
                }
            }
        }
        assert!(
            start.elapsed() < Duration::from_secs(60),
            "seed {seed} took {:?} ({listed:?}, {host})",
            start.elapsed()
        );
    }
    assert!(
        answers > 0 && errors > 0,
        "{answers} answers, {errors} errors"
    );
}

//! `vmrestore show`: one guest or process in full, with its fidelity.

use super::args::DumpArgs;
use super::exit::{Exit, Failure};
use super::open;
use super::output::print_json;
use super::table::{Table, bytes, utc};
use super::{select, sets};
use crate::dataset::{
    Dataset, Fidelity, FidelityLevel, FileKind, MappingKind, OpenFile, Process, Vm,
};
use crate::extract::DeadHost;

/// Shows what `selector` names: a guest if one answers to it, else a process.
///
/// # Errors
/// When the dump cannot be read or nothing matches.
pub fn run(dump: &DumpArgs, selector: &str, json: bool) -> Result<Exit, Failure> {
    let dead = open::host(dump)?;
    let pid = find(&dead, selector)?;
    let dataset = dead.dataset(&[pid])?;
    if json {
        // The dataset is its own document: the one that `extract` writes.
        print_json(&dataset)?;
        return Ok(Exit::Done);
    }
    let seconds = dataset.host.realtime_ns.div_euclid(1_000_000_000);
    println!("crash      {}", dataset.crash_id);
    println!(
        "host       {} ({})",
        dataset.host.hostname, dataset.host.release
    );
    println!("time       {}", utc(seconds));
    for process in &dataset.processes {
        println!();
        print_process(&dataset, process);
    }
    print_ties(&dead, pid)?;
    for vm in &dataset.vms {
        println!();
        print_vm(vm);
    }
    println!();
    print_fidelity(&dataset.fidelity);
    Ok(Exit::Done)
}

/// With whom it shares what, and who its children are: without them it is cut
/// from them.
fn print_ties(dead: &DeadHost, pid: i32) -> Result<(), Failure> {
    let together = dead.together().unwrap_or_default();
    let processes = dead.processes()?;
    let name = |pid: i32| {
        let process = processes.iter().find(|p| p.pid == pid);
        format!("{pid} ({})", process.map_or("?", |p| p.comm.as_str()))
    };
    let names = |pids: &[i32]| -> String {
        const MOST: usize = 8;
        let mut words: Vec<String> = pids.iter().take(MOST).map(|pid| name(*pid)).collect();
        if let Some(more) = pids.len().checked_sub(MOST).filter(|more| *more > 0) {
            words.push(format!("and {more} more"));
        }
        words.join(", ")
    };
    for (shared, others) in sets::cut(&together, &[pid]) {
        println!("together   shares {} with {}", shared.by, names(&others));
    }
    let of = |p: &&crate::task::ProcessSummary| p.ppid == pid;
    let children: Vec<i32> = processes.iter().filter(of).map(|p| p.pid).collect();
    if !children.is_empty() {
        println!("children   {}", names(&children));
    }
    Ok(())
}

/// The PID that a selector means.
///
/// # Errors
/// When nothing matches.
pub fn find(dead: &DeadHost, selector: &str) -> Result<i32, Failure> {
    let selector = [selector.to_owned()];
    let guests = dead.guests()?;
    if let Ok(found) = select::guests(&guests, &selector)
        && let Some(guest) = found.first()
    {
        return Ok(guest.pid);
    }
    let processes = dead.processes()?;
    let found = select::processes(&processes, &selector)?;
    found.first().map(|p| p.pid).ok_or_else(|| {
        Failure::new(
            Exit::NoMatch,
            "nothing matches",
            "`vmrestore list DUMP` shows what there is",
        )
    })
}

fn print_process(dataset: &Dataset, process: &Process) {
    println!(
        "process    pid {} ({}), parent {}",
        process.pid, process.comm, process.ppid
    );
    println!("command    {}", process.cmdline.join(" "));
    println!("directory  {}", process.fs.cwd);
    let resident: u64 = process
        .mm
        .vmas
        .iter()
        .flat_map(|v| &v.pages)
        .map(|r| r.count)
        .sum();
    println!(
        "memory     {} VMAs, {} of its own",
        process.mm.vmas.len(),
        bytes(resident * 4096)
    );

    let mut threads = Table::new(&[
        ("THREAD", true),
        ("NAME", false),
        ("WAS", false),
        ("IN", false),
        ("GOES ON BY", false),
        ("FPU", false),
    ]);
    for t in &process.threads {
        threads.row(vec![
            t.tid.to_string(),
            t.comm.clone(),
            format!("{:?}", t.run_state),
            t.syscall.as_ref().map_or("-".into(), |s| s.name.clone()),
            format!("{:?}", t.resume),
            if t.fpu_stale { "stale" } else { "exact" }.into(),
        ]);
    }
    println!();
    threads.print();

    let mut files = Table::new(&[
        ("FD", true),
        ("KIND", false),
        ("POS", true),
        ("WHAT", false),
    ]);
    for fd in &process.fds {
        if let Some(file) = dataset.file(fd.file) {
            files.row(vec![
                fd.fd.to_string(),
                kind_name(file).into(),
                file.position.to_string(),
                format!(
                    "{}{}",
                    file.path,
                    if file.deleted { " (deleted)" } else { "" }
                ),
            ]);
        }
    }
    println!();
    files.print();

    let unwritten: Vec<_> = dataset
        .inodes
        .iter()
        .filter(|i| !i.dirty.is_empty())
        .collect();
    for inode in unwritten {
        let pages: u64 = inode.dirty.iter().map(|r| r.count).sum();
        println!("unwritten  {} of {}", bytes(pages * 4096), inode.path);
    }
    for vma in &process.mm.vmas {
        if let MappingKind::Unsupported { why } = &vma.kind {
            println!("mapping    {:#x} cannot be made again: {why}", vma.start);
        }
    }
}

/// The word for a kind of open file.
fn kind_name(file: &OpenFile) -> &'static str {
    match &file.kind {
        FileKind::Regular => "file",
        FileKind::Directory => "directory",
        FileKind::CharDevice { .. } => "char",
        FileKind::BlockDevice { .. } => "block",
        FileKind::Tty { .. } => "tty",
        FileKind::Pipe { .. } => "pipe",
        FileKind::EventFd { .. } => "eventfd",
        FileKind::TimerFd { .. } => "timerfd",
        FileKind::SignalFd { .. } => "signalfd",
        FileKind::Epoll { .. } => "epoll",
        FileKind::UnixSocket(_) => "unix",
        FileKind::InetSocket(_) => "inet",
        FileKind::Memfd { .. } => "memfd",
        FileKind::MessageQueue { .. } => "mqueue",
        FileKind::KvmSystem => "kvm",
        FileKind::KvmVm { .. } => "kvm-vm",
        FileKind::KvmVcpu { .. } => "kvm-vcpu",
        FileKind::Tun { .. } => "tun",
        FileKind::Vhost(_) => "vhost",
        FileKind::PidFd { .. } => "pidfd",
        FileKind::Inotify { .. } => "inotify",
        FileKind::Unsupported { .. } => "unsupported",
    }
}

fn print_vm(vm: &Vm) {
    println!(
        "guest      {} ({}, struct kvm {})",
        vm.name.as_deref().unwrap_or("-"),
        vm.vendor,
        vm.id
    );
    if let Some(uuid) = &vm.uuid {
        println!("uuid       {uuid}");
    }
    println!("kvmclock   {} ns", vm.clock.clock_ns);
    let mut slots = Table::new(&[
        ("SLOT", true),
        ("GUEST ADDRESS", true),
        ("SIZE", true),
        ("IN THE VMM", true),
    ]);
    for slot in &vm.memslots {
        slots.row(vec![
            slot.slot.to_string(),
            format!("{:#x}", slot.guest_address),
            bytes(slot.size),
            format!("{:#x}", slot.user_address),
        ]);
    }
    println!();
    slots.print();

    let mut vcpus = Table::new(&[
        ("VCPU", true),
        ("THREAD", true),
        ("WAS", false),
        ("RIP", true),
        ("RSP", true),
        ("CR3", true),
        ("MSRS", true),
        ("EXIT IN FLIGHT", false),
        ("FPU", false),
    ]);
    for v in &vm.vcpus {
        vcpus.row(vec![
            v.vcpu_id.to_string(),
            v.tid.to_string(),
            format!("{:?}", v.activity),
            format!("{:#x}", v.regs.rip),
            format!("{:#x}", v.regs.rsp),
            format!("{:#x}", v.sregs.cr3),
            v.msrs.len().to_string(),
            v.exit_in_flight
                .as_ref()
                .map_or("-".into(), |e| e.completion.clone()),
            if v.fpu_stale { "stale" } else { "exact" }.into(),
        ]);
    }
    println!();
    vcpus.print();
}

fn print_fidelity(fidelity: &[Fidelity]) {
    if fidelity.iter().all(|f| f.level == FidelityLevel::Exact) {
        println!("fidelity   everything is exact");
        return;
    }
    let mut table = Table::new(&[
        ("FIDELITY", false),
        ("OF", false),
        ("WHAT", false),
        ("HOW", false),
    ]);
    for f in fidelity.iter().filter(|f| f.level != FidelityLevel::Exact) {
        let level = match f.level {
            FidelityLevel::Lost => "lost",
            _ => "reconstructed",
        };
        table.row(vec![
            level.into(),
            f.subject.clone(),
            f.what.clone(),
            f.how.clone(),
        ]);
    }
    table.print();
}

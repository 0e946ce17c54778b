//! A small guest, stopped and taken away, goes on under bare mode's VMM.
//!
//! The guests are those of `tests/tiny_guest`; they run on any /dev/kvm. What
//! they print is computed here once more, from their first registers.

#[allow(dead_code)]
#[path = "tiny_guest/arriving.rs"]
mod arriving;
#[allow(dead_code)]
#[path = "tiny_guest/boot.rs"]
mod boot;
#[allow(dead_code)]
#[path = "tiny_guest/device.rs"]
mod device;
#[allow(dead_code)]
#[path = "tiny_guest/machine.rs"]
mod machine;
#[allow(dead_code)]
#[path = "tiny_guest/programs.rs"]
mod programs;
#[allow(dead_code)]
#[path = "tiny_guest/snapshot.rs"]
mod snapshot;

use boot::{DATA, HANDLER};
use kvm_ioctls::VcpuExit;
use machine::{Chips, MEMORY, Machine};
use programs::Mode;
use std::io::Write;
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use vm_memory::{Bytes, GuestAddress};
use vmrestore::bare::{BareError, Ending, Outcome, Settings};
use vmrestore::dataset::{
    Dataset, FidelityLevel, Irqchip, MappingKind, Memslot, ObjectId, PageContent, PageRun,
    PageSource, PageSourceError, Process, SharedMemory, Vm, Vma,
};
use vmrestore::dump::{Dump, Missing, PageState, PhysicalMemory};
use vmrestore::extract::core::{self, CoreError};
use vmrestore::sys::interrupt;

/// Whether a test can run here; if not, says so.
fn kvm_is_here(test: &str) -> bool {
    // A guest that hangs must not hang its test: SIGALRM ends it.
    // SAFETY: no preconditions.
    unsafe { libc::alarm(240) };
    match kvm_ioctls::Kvm::new() {
        Ok(_) => true,
        Err(e) => {
            eprintln!("\n*** SKIPPED {test}: no /dev/kvm here ({e}) ***\n");
            false
        }
    }
}

/// Guest memory as bytes.
#[derive(Clone)]
struct Stored(Vec<u8>);

impl PageSource for Stored {
    fn read_pages(
        &self,
        run: &PageRun,
        first: u64,
        count: u64,
        out: &mut [u8],
    ) -> Result<(), PageSourceError> {
        let PageContent::Stored(offset) = run.content else {
            panic!("asked for {:?}", run.content);
        };
        let at = (offset + first * 4096) as usize;
        out.copy_from_slice(&self.0[at..at + count as usize * 4096]);
        Ok(())
    }
}

/// A process as a dump's reader would describe it: its memory alone.
fn process(vmas: Vec<Vma>) -> Process {
    let zero = "0x0";
    let mm = serde_json::json!({
        "vmas": vmas, "start_code": zero, "end_code": zero, "start_data": zero,
        "end_data": zero, "start_brk": zero, "brk": zero, "start_stack": zero,
        "arg_start": zero, "arg_end": zero, "env_start": zero, "env_end": zero, "auxv": [],
        "exe": null, "exe_path": null, "vdso": zero, "def_flags": zero, "dumpable": 1,
        "thp_disabled": false, "oom_score_adj": 0,
    });
    serde_json::from_value(serde_json::json!({
        "pid": 1, "ns_pid": 1, "ppid": 0, "pgid": 1, "sid": 1, "comm": "vmm", "cmdline": [],
        "mm": mm, "threads": [], "fds": [], "fs": {"cwd": "/", "root": "/", "umask": 0},
        "rlimits": [], "sigactions": [], "pending": [], "itimers": [], "posix_timers": [],
        "child_subreaper": false, "stopped": false,
    }))
    .expect("a process")
}

fn vma(start: u64, end: u64, kind: MappingKind, pages: Vec<PageRun>) -> Vma {
    Vma {
        start,
        end,
        flags: 3,
        kind,
        pages,
        huge_page: 0,
    }
}

fn anonymous() -> MappingKind {
    MappingKind::Anonymous {
        name: None,
        stack: false,
        heap: false,
    }
}

/// What a crash and its dump make of a VM: its state, and its memory as pages,
/// in private memory but for the upper half, which is a shared memory's.
fn crashed(mut machine: Machine) -> (Dataset, Vm, Stored) {
    let vm = snapshot::read(&mut machine);
    let bytes = machine.memory_bytes();
    drop(machine);
    let start = vm.memslots[0].user_address;
    let half = MEMORY as u64 / 2;
    let run = |start: u64, from: u64| PageRun {
        start,
        count: half / 4096,
        content: PageContent::Stored(from),
    };
    let id = ObjectId(0xffff_8880_0200_0000);
    let shared = MappingKind::Shared {
        memory: id,
        offset: 0x5000,
    };
    let process = process(vec![
        vma(start, start + half, anonymous(), vec![run(start, 0)]),
        vma(start + half, start + 2 * half, shared, vec![]),
    ]);
    let memory = SharedMemory {
        id,
        name: "ram".into(),
        memfd: true,
        size: half + 0x5000,
        seals: 0,
        pages: vec![run(0x5000, half)],
        huge_page: 0,
    };
    // By way of JSON: what else a dataset may say is of no matter here.
    let dataset = serde_json::from_value(serde_json::json!({
        "schema_version": vmrestore::dataset::SCHEMA_VERSION, "crash_id": "test",
        "host": {
            "release": "", "version": "", "hostname": "", "realtime_ns": 0, "monotonic_ns": 0,
            "boottime_ns": 0, "tsc_khz": 0, "tsc": 0,
        },
        "processes": [process], "shared_memory": [memory],
        "files": [], "pipes": [], "inodes": [], "vms": [], "fidelity": [],
    }))
    .expect("a dataset");
    (dataset, vm, Stored(bytes))
}

/// What a guest prints, as it comes.
#[derive(Clone, Default)]
struct Printed(Arc<Mutex<Vec<u8>>>);

impl Write for Printed {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("lock").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn build(
    dataset: &Dataset,
    vm: &Vm,
    pages: &Stored,
    forced: bool,
) -> Result<vmrestore::bare::Machine, BareError> {
    let guard = interrupt::Guard::install();
    vmrestore::bare::Machine::build(dataset, vm, pages, forced, &guard)
}

/// Runs it; what it printed, and how it ended.
fn run_bare(
    machine: vmrestore::bare::Machine,
    limit: Option<Duration>,
    keys: Option<Receiver<Vec<u8>>>,
) -> (Vec<u8>, Outcome) {
    let printed = Printed::default();
    let settings = Settings {
        limit,
        output: Box::new(printed.clone()),
        keys,
        escape: true,
    };
    let outcome = machine.run(settings, &interrupt::Guard::install());
    let bytes = printed.0.lock().expect("lock").clone();
    (bytes, outcome)
}

/// What `alone` prints in all, where devices that are not there read as ones.
fn all_that_alone_prints() -> Vec<u8> {
    let mut sum = 0x1234_5678_u32;
    (1..=200_u32)
        .map(|n| {
            sum = sum.wrapping_mul(33).wrapping_add(n);
            sum = sum.wrapping_add(u32::MAX).wrapping_add(u32::MAX);
            (sum as u8 & 0x3f) + 0x20
        })
        .collect()
}

/// Runs `alone` up to the exit number `stop`, which stays unanswered.
fn alone_until(stop: usize, mode: Mode, chips: Chips) -> (Machine, Vec<u8>) {
    let mut machine = Machine::new(mode, &["alone"], chips);
    let mut printed = Vec::new();
    for n in 0..=stop {
        let answer = |bytes: &mut [u8]| bytes.fill(0xff);
        match machine.vcpus[0].run().expect("KVM_RUN") {
            _ if n == stop => {}
            VcpuExit::IoIn(0x1f0, data) => answer(data),
            VcpuExit::MmioRead(0x1000_0008, data) => answer(data),
            VcpuExit::IoOut(0x3f8, data) => printed.extend_from_slice(data),
            other => panic!("exit {n}: {other:?}"),
        }
    }
    (machine, printed)
}

#[test]
fn a_guest_goes_on_at_every_kind_of_exit() {
    if !kvm_is_here("a_guest_goes_on_at_every_kind_of_exit") {
        return;
    }
    let wanted = all_that_alone_prints();
    for (mode, chips) in [
        (Mode::Long, Chips::Kernel),
        (Mode::Long, Chips::Split),
        (Mode::Protected, Chips::None),
    ] {
        for stop in 30..33 {
            let (machine, mut printed) = alone_until(stop, mode, chips);
            assert_eq!(printed.len(), 10, "three exits for each byte");
            let (dataset, vm, pages) = crashed(machine);
            let machine = build(&dataset, &vm, &pages, false).expect("bare");
            let (rest, outcome) = run_bare(machine, None, None);
            printed.extend(rest);
            assert_eq!(printed, wanted, "{mode:?}, stopped at exit {stop}");
            assert!(matches!(outcome.ending, Ending::Reset), "{outcome:?}");
            let places = &outcome.counts.absent_devices;
            assert_eq!(places["port 0x1f0"].writes, 0);
            assert!(places["memory 0x10000000"].reads >= 189, "{places:?}");
            assert_eq!(outcome.counts.serial_bytes, 190);
        }
    }
}

/// One dataset, run again and again: it is not used up.
#[test]
fn it_can_be_done_again_and_two_slots_show_one_memory() {
    if !kvm_is_here("it_can_be_done_again_and_two_slots_show_one_memory") {
        return;
    }
    let (machine, printed) = alone_until(30, Mode::Long, Chips::Kernel);
    let (dataset, mut vm, mut pages) = crashed(machine);
    // From now on the guest looks for its counter in the second slot too.
    pages.0[DATA as usize + 4] = 1;
    let first = vm.memslots[0];
    vm.memslots.push(Memslot {
        slot: 1,
        flags: 2,
        guest_address: 0x2000_0000,
        size: MEMORY as u64 / 4,
        ..first
    });
    for _ in 0..2 {
        let machine = build(&dataset, &vm, &pages, false).expect("bare");
        assert!(
            (machine.absent.iter()).any(|f| f.level == FidelityLevel::Lost),
            "it says that the devices are gone"
        );
        let (rest, outcome) = run_bare(machine, None, None);
        assert_eq!([printed.clone(), rest].concat(), all_that_alone_prints());
        assert!(matches!(outcome.ending, Ending::Reset), "{outcome:?}");
    }
}

/// A guest that sleeps until somebody types.
fn sleeping() -> (Dataset, Vm, Stored) {
    let mut machine = Machine::new(Mode::Long, &["sleeper"], Chips::Split);
    let handler = programs::program("serial_handler", Mode::Long);
    machine
        .memory
        .write_slice(handler, GuestAddress(HANDLER))
        .expect("handler");
    // Line 4, as a VMM with an IOAPIC of its own tells KVM of it.
    machine.wire_irqfd(ObjectId(7), 4);
    // Let it come to its HLT.
    let fd = machine.wiring.eventfds[&ObjectId(7)].try_clone();
    let ringer = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(300));
        fd.expect("eventfd").write(1).expect("ring");
    });
    match machine.vcpus[0].run().expect("KVM_RUN") {
        // The handler asks why there was an interrupt.
        VcpuExit::IoIn(0x3fa, data) => data[0] = 1,
        other => panic!("{other:?}"),
    }
    ringer.join().expect("ringer");
    match machine.vcpus[0].run().expect("KVM_RUN") {
        VcpuExit::IoOut(0x3f8, b"w") => {}
        other => panic!("{other:?}"),
    }
    crashed(machine)
}

#[test]
fn what_is_typed_reaches_the_guest_by_interrupts() {
    if !kvm_is_here("what_is_typed_reaches_the_guest_by_interrupts") {
        return;
    }
    let (dataset, vm, pages) = sleeping();
    assert!(matches!(vm.irqchip, Irqchip::Split { .. }));
    let machine = build(&dataset, &vm, &pages, false).expect("bare");
    let (typist, keys) = mpsc::sync_channel::<Vec<u8>>(0);
    let typing = std::thread::spawn(move || {
        for text in ["HAL", "9\x01\x01", "\x01x"] {
            // The guest sleeps meanwhile.
            std::thread::sleep(Duration::from_millis(300));
            typist.send(text.into()).expect("it listens");
        }
    });
    let (printed, outcome) = run_bare(machine, None, Some(keys));
    typing.join().expect("typist");
    assert!(matches!(outcome.ending, Ending::Escape), "{outcome:?}");
    let without_w: Vec<u8> = printed.iter().copied().filter(|b| *b != b'w').collect();
    assert_eq!(String::from_utf8_lossy(&without_w), "IBM:\x02");
    assert!(printed.contains(&b'w'), "it woke from its HLT");
}

/// Runs `driver` up to the exit number `stop`, which stays unanswered; what it
/// had sent.
fn driver_until(stop: usize, chips: Chips) -> (Machine, Vec<u8>) {
    let mut machine = Machine::new(Mode::Long, &["driver"], chips);
    let handler = programs::program("driver_handler", Mode::Long);
    machine
        .memory
        .write_slice(handler, GuestAddress(HANDLER))
        .expect("handler");
    machine.wire_irqfd(ObjectId(7), 4);
    let (mut sent, mut empty) = (Vec::new(), false);
    for n in 0..=stop {
        match machine.vcpus[0].run().expect("KVM_RUN") {
            _ if n == stop => {}
            VcpuExit::IoIn(0x3fa, data) => data[0] = if std::mem::take(&mut empty) { 2 } else { 1 },
            VcpuExit::IoOut(0x3f8, data) => {
                sent.extend_from_slice(data);
                empty = true;
            }
            VcpuExit::IoOut(0x3f9, &[7]) => {
                empty = true;
                machine.wiring.eventfds[&ObjectId(7)]
                    .write(1)
                    .expect("ring");
            }
            VcpuExit::IoOut(0x3f9, &[5]) => empty = false,
            other => panic!("exit {n}: {other:?}"),
        }
    }
    (machine, sent)
}

/// The port's registers went with its VMM. Wherever its driver was then, sending
/// or idle, it goes on.
#[test]
fn a_serial_driver_goes_on_wherever_it_was() {
    if !kvm_is_here("a_serial_driver_goes_on_wherever_it_was") {
        return;
    }
    let wanted: Vec<u8> = (0..200_u8).map(|n| (n & 0x3f) + 0x20).collect();
    // The second round, which has 29 exits, from its begin into the third.
    for stop in 29..60 {
        let (machine, mut printed) = driver_until(stop, Chips::Split);
        let (dataset, vm, pages) = crashed(machine);
        let machine = build(&dataset, &vm, &pages, false).expect("bare");
        let (rest, outcome) = run_bare(machine, Some(Duration::from_secs(30)), None);
        printed.extend(rest);
        assert!(
            matches!(outcome.ending, Ending::Reset),
            "stopped at {stop}: {outcome:?}"
        );
        assert_eq!(printed, wanted, "stopped at {stop}");
    }
}

#[test]
fn it_ends_when_its_time_is_up_although_it_sleeps() {
    if !kvm_is_here("it_ends_when_its_time_is_up_although_it_sleeps") {
        return;
    }
    let (dataset, vm, pages) = sleeping();
    let machine = build(&dataset, &vm, &pages, false).expect("bare");
    let (_, outcome) = run_bare(machine, Some(Duration::from_millis(500)), None);
    assert!(matches!(outcome.ending, Ending::Limit), "{outcome:?}");
}

#[test]
fn missing_memory_is_refused_unless_forced() {
    if !kvm_is_here("missing_memory_is_refused_unless_forced") {
        return;
    }
    let (machine, printed) = alone_until(30, Mode::Long, Chips::Kernel);
    let (mut dataset, vm, pages) = crashed(machine);
    // The last page, which the guest does not use.
    let run = &mut dataset.shared_memory[0].pages[0];
    run.count -= 1;
    let last = PageRun {
        start: run.start + run.count * 4096,
        count: 1,
        content: PageContent::Filtered,
    };
    dataset.shared_memory[0].pages.push(last);
    match build(&dataset, &vm, &pages, false) {
        Err(BareError::Missing { bytes: 4096, .. }) => {}
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("memory is missing, and nobody minds"),
    }
    let machine = build(&dataset, &vm, &pages, true).expect("bare");
    let said = machine.fidelity.iter().any(|f| f.what.contains("4096"));
    assert!(said, "{:?}", machine.fidelity);
    let (rest, _) = run_bare(machine, None, None);
    assert_eq!([printed, rest].concat(), all_that_alone_prints());
}

/// `extract --core`: the memory by guest-physical address, with what is missing
/// missing, and the registers; never over another file.
#[test]
fn a_core_holds_memory_and_registers() {
    if !kvm_is_here("a_core_holds_memory_and_registers") {
        return;
    }
    let (machine, _) = alone_until(30, Mode::Long, Chips::Kernel);
    let (mut dataset, mut vm, pages) = crashed(machine);
    let run = &mut dataset.shared_memory[0].pages[0];
    run.count -= 1;
    // A second slot, above 4 GiB, that shows the first page again.
    vm.memslots.push(Memslot {
        slot: 1,
        guest_address: 1 << 32,
        size: 4096,
        ..vm.memslots[0]
    });
    let missing = run.start + run.count * 4096;
    dataset.shared_memory[0].pages.push(PageRun {
        start: missing,
        count: 1,
        content: PageContent::Truncated,
    });
    let directory = std::env::temp_dir().join(format!("vmrestore-core-{}", std::process::id()));
    std::fs::create_dir_all(&directory).expect("directory");
    let path = directory.join("core");
    let guard = interrupt::Guard::install();
    let write = |replace| core::write(&dataset, &vm, &pages, &path, replace, &guard);
    let written = write(false).expect("core");
    assert_eq!(written.memory_bytes, MEMORY as u64 + 4096);
    assert_eq!(written.missing.len(), 1, "{written:?}");
    assert_eq!(written.kernel, None);
    assert!(matches!(write(false), Err(CoreError::Exists { .. })));
    write(true).expect("another core");

    let dump = Dump::open(&path).expect("a dump");
    let mut page = [0; 4096];
    for (address, from) in [(DATA, DATA as usize), (0, 0), (1 << 32, 0)] {
        dump.read_physical(address, &mut page).expect("memory");
        assert_eq!(page, pages.0[from..from + 4096], "{address:#x}");
    }
    let last = MEMORY as u64 / 4096 - 1;
    assert!(matches!(
        dump.page_state(last),
        PageState::Missing(Missing::Filtered)
    ));
    assert_eq!(dump.page_state(last - 1), PageState::Present);
    let [cpu] = dump.cpu_notes() else {
        panic!("{:?}", dump.cpu_notes());
    };
    let (regs, qemu) = (&vm.vcpus[0].regs, cpu.qemu.expect("QEMU's note"));
    let prstatus = cpu.prstatus.expect("registers").regs;
    assert_eq!(
        [prstatus.rip, prstatus.rbx, prstatus.rbp, prstatus.rsp],
        [regs.rip, regs.rbx, regs.rbp, regs.rsp]
    );
    assert_eq!([qemu.rip, qemu.rflags], [regs.rip, regs.rflags]);
    assert_eq!(qemu.cr[3], vm.vcpus[0].sregs.cr3);
    assert_eq!(qemu.gdt.base, vm.vcpus[0].sregs.gdt.base);

    let left = std::fs::read_dir(&directory).expect("directory").count();
    assert_eq!(left, 1, "nothing but the core");
    std::fs::remove_dir_all(&directory).expect("removed");
}

/// A core that fails on the way leaves nothing behind.
#[test]
fn a_core_that_cannot_be_written_leaves_nothing() {
    if !kvm_is_here("a_core_that_cannot_be_written_leaves_nothing") {
        return;
    }
    let (machine, _) = alone_until(30, Mode::Long, Chips::Kernel);
    let (dataset, vm, _) = crashed(machine);
    /// No page can be read.
    #[derive(Clone)]
    struct Torn;
    impl PageSource for Torn {
        fn read_pages(
            &self,
            run: &PageRun,
            _: u64,
            _: u64,
            _: &mut [u8],
        ) -> Result<(), PageSourceError> {
            Err(PageSourceError {
                at: run.start,
                content: run.content,
                why: "torn".into(),
            })
        }
    }
    let directory = std::env::temp_dir().join(format!("vmrestore-torn-{}", std::process::id()));
    std::fs::create_dir_all(&directory).expect("directory");
    let guard = interrupt::Guard::install();
    let path = directory.join("core");
    let torn = core::write(&dataset, &vm, &Torn, &path, false, &guard);
    assert!(matches!(torn, Err(CoreError::Page(_))), "{torn:?}");
    let left = std::fs::read_dir(&directory).expect("directory").count();
    assert_eq!(left, 0);
    std::fs::remove_dir_all(&directory).expect("removed");
}

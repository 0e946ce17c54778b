//! Stops a small guest, makes it anew through `restore::kvm`, and lets it go on.
//!
//! It runs on any /dev/kvm: one that uses the CPU's virtualization, or one that
//! interprets such guests (PVM), where the exits' completions are others.
//! `scripts/tiny-guest-in-lab` runs it on nested SVM wherever one is.

mod arriving;
mod boot;
mod clocks;
mod device;
mod in_flight;
mod injected;
mod machine;
mod msr_list;
mod odd;
mod pieces;
mod preflight;
mod programs;
mod rare_exits;
mod readback;
mod snapshot;
mod state;
mod stay;
mod vcpus;

use boot::{CODE, DATA, IDT};
use device::{Device, Event};
use in_flight::each_comes_again;
use kvm_ioctls::IoEventAddress;
use machine::{Chips, Machine, handle_pending, run, step};
use programs::Mode;
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};
use vm_memory::{Bytes, GuestAddress};
use vmrestore::dataset::ObjectId;
use vmrestore::restore::kvm::KvmError;

/// Whether a test can run here; if not, says so.
fn kvm_is_here(test: &str) -> bool {
    // A guest that hangs must not hang its test: SIGALRM ends it.
    // SAFETY: no preconditions.
    unsafe { libc::alarm(240) };
    match kvm_ioctls::Kvm::new() {
        Ok(_) => true,
        Err(e) => {
            eprintln!(
                "\n*** SKIPPED {test}: no /dev/kvm here ({e}); the lab runs it inside its host ***\n"
            );
            false
        }
    }
}

/// Whether KVM runs guests by the CPU, rather than by interpreting them.
fn has_hardware_kvm() -> bool {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    cpuinfo
        .split_whitespace()
        .any(|flag| flag == "svm" || flag == "vmx")
}

/// Writes into a vCPU's data page.
fn set_word(machine: &Machine, vcpu: usize, at: u64, word: u32) {
    let address = GuestAddress(DATA + 0x4000 * vcpu as u64 + at);
    machine.memory.write_obj(word, address).expect("memory");
}

fn exits_machine(mode: Mode, vcpus: usize, chips: Chips) -> Machine {
    let machine = Machine::new(mode, &vec!["exits"; vcpus], chips);
    for n in 0..vcpus {
        set_word(&machine, n, 4, u32::from(has_hardware_kvm()));
    }
    machine
}

/// Exits of one round of the program.
const EXITS_ROUND: usize = 24;

fn every_exit_in_flight(mode: Mode, chips: Chips) {
    each_comes_again(EXITS_ROUND, || exits_machine(mode, 1, chips));
    let arrived = arriving::ARRIVED.load(std::sync::atomic::Ordering::Relaxed);
    if arrived > 0 {
        eprintln!("{arrived} pages have arrived");
    }
}

#[test]
fn every_exit_in_flight_long_mode() {
    if kvm_is_here("every_exit_in_flight_long_mode") {
        every_exit_in_flight(Mode::Long, Chips::Kernel);
    }
}

#[test]
fn every_exit_in_flight_protected_mode() {
    if kvm_is_here("every_exit_in_flight_protected_mode") {
        every_exit_in_flight(Mode::Protected, Chips::Split);
    }
}

#[test]
fn every_exit_in_flight_without_irqchip() {
    if kvm_is_here("every_exit_in_flight_without_irqchip") {
        every_exit_in_flight(Mode::Long, Chips::None);
    }
}

/// The tests above once more, with memory that is not there when the state is set: KVM itself waits for
/// pages that it reads or writes, and so does the guest.
#[test]
fn memory_may_arrive_later() {
    if !kvm_is_here("memory_may_arrive_later") {
        return;
    }
    let output = std::process::Command::new(std::env::current_exe().expect("this test"))
        .args(["every_exit_in_flight", "clocks", "--nocapture"])
        .env("TINY_LAZY", "1")
        .output()
        .expect("itself");
    let said = String::from_utf8_lossy(&output.stdout);
    let all = format!("{said}{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{all}");
    assert!(all.contains("pages have arrived"), "{all}");
    eprintln!("{}", said.lines().last().unwrap_or_default());
}

const IRQFD: ObjectId = ObjectId(0x1001);

/// Runs a vCPU up to the n-th event of its log.
fn run_until(machine: &mut Machine, vcpu: usize, device: &mut Device, events: usize) {
    while device.log.len() < events {
        step(&mut machine.vcpus[vcpu], device);
    }
}

/// What a program says of the requested vectors, 0x40 being bit 0.
fn report(vectors: u32) -> Event {
    Event::Out {
        port: 0x500,
        data: vectors.to_le_bytes().to_vec(),
    }
}

/// An armed timer fires after what was left of its time, and not before.
fn timer(kind: u32, count: u32) {
    let mut machine = Machine::new(Mode::Long, &["poller"], Chips::Split);
    set_word(&machine, 0, 8, kind);
    set_word(&machine, 0, 12, count);
    let mut device = Device::default();
    let armed = Instant::now();
    run_until(&mut machine, 0, &mut device, 1);
    assert_eq!(device.said(0x3f8), "A");
    let elapsed = armed.elapsed();

    machine = machine.crash_and_restore();
    let resumed = Instant::now();
    assert!(
        run_for(&mut machine, Duration::from_secs(20)),
        "it never fired: TSC {:#x}, deadline {:#x}",
        machine.msr(0, 0x10),
        machine.msr(0, 0x6e0)
    );
    handle_pending(&mut machine.vcpus[0], &mut device);
    let fired = resumed.elapsed();
    assert_eq!(device.log[1], report(1));
    eprintln!("timer {kind}: stopped {elapsed:?} after arming, fired {fired:?} after the restore");
    assert!(fired > Duration::from_millis(200), "too early: {fired:?}");
}

#[test]
fn one_shot_timer_in_flight() {
    if kvm_is_here("one_shot_timer_in_flight") {
        // 16 ns × 60 000 000: about a second.
        timer(1, 60_000_000);
    }
}

#[test]
fn tsc_deadline_in_flight() {
    if kvm_is_here("tsc_deadline_in_flight") {
        // A second at 2 GHz.
        timer(2, 2_000_000_000);
    }
}

/// The restore kicks the irqfd once.
#[test]
fn irqfd_is_kicked() {
    if !kvm_is_here("irqfd_is_kicked") {
        return;
    }
    let mut machine = Machine::new(Mode::Long, &["poller"], Chips::Split);
    machine.wire_irqfd(IRQFD, 24);
    let mut device = Device::default();
    run_until(&mut machine, 0, &mut device, 1);
    machine = machine.crash_and_restore();
    run_until(&mut machine, 0, &mut device, 2);
    assert_eq!(device.log[1], report(2));
}

/// A vCPU that sleeps in HLT sleeps on, and is woken by interrupts that are
/// delivered through its IDT: the restore's kick, and the VMM's own.
#[test]
fn sleeping_vcpu_is_woken() {
    if !kvm_is_here("sleeping_vcpu_is_woken") {
        return;
    }
    if !has_hardware_kvm() {
        eprintln!(
            "\n*** SKIPPED sleeping_vcpu_is_woken: this KVM interprets guests, and its \
             interpreter has no IRET in protected mode; the lab runs it inside its host ***\n"
        );
        return;
    }
    for mode in [Mode::Long, Mode::Protected] {
        let mut machine = Machine::new(mode, &["sleeper"], Chips::Split);
        machine.wire_irqfd(IRQFD, 24);
        let mut device = Device::default();
        for round in 0..3 {
            // Lets it run into HLT, and then out of KVM_RUN by a signal.
            assert!(!run_for(&mut machine, Duration::from_millis(200)));
            assert_eq!(device.said(0x3f8), "Dw".repeat(round * 2));
            machine = machine.crash_and_restore();
            run_until(&mut machine, 0, &mut device, round * 4 + 2);
            assert!(!run_for(&mut machine, Duration::from_millis(200)));
            machine.wiring.eventfds[&IRQFD].write(1).expect("eventfd");
            run_until(&mut machine, 0, &mut device, round * 4 + 4);
            assert_eq!(device.said(0x3f8), "Dw".repeat(round * 2 + 2));
        }
    }
}

extern "C" fn on_signal(_: i32) {}

/// Runs vCPU 0 for a time; whether it came to an exit.
fn run_for(machine: &mut Machine, time: Duration) -> bool {
    // SAFETY: zeros are a valid sigaction; the handler does nothing.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_signal as *const () as usize;
        libc::sigaction(libc::SIGUSR1, &raw const action, std::ptr::null_mut());
    }
    // SAFETY: no preconditions.
    let (pid, tid) = unsafe { (libc::getpid(), libc::gettid()) };
    std::thread::scope(|scope| {
        let (done, is_done) = std::sync::mpsc::channel::<()>();
        scope.spawn(move || {
            let mut wait = time;
            while is_done.recv_timeout(wait) == Err(RecvTimeoutError::Timeout) {
                // SAFETY: the thread waits for the scope's end.
                unsafe { libc::syscall(libc::SYS_tgkill, pid, tid, libc::SIGUSR1) };
                // Again, should it have come before KVM_RUN.
                wait = Duration::from_millis(50);
            }
        });
        let exited = run(&mut machine.vcpus[0]);
        drop(done);
        exited
    })
}

/// An interrupt from one vCPU finds the other by its APIC id.
#[test]
fn interrupt_between_vcpus() {
    if !kvm_is_here("interrupt_between_vcpus") {
        return;
    }
    let mut machine = Machine::new(Mode::Long, &["sender", "poller"], Chips::Split);
    let mut devices = [Device::default(), Device::default()];
    for (vcpu, device) in machine.vcpus.iter_mut().zip(&mut devices) {
        step(vcpu, device);
    }
    machine = machine.crash_and_restore();
    // The sender's next exit comes after it has sent.
    run_until(&mut machine, 0, &mut devices[0], 2);
    run_until(&mut machine, 1, &mut devices[1], 2);
    assert_eq!(devices[1].log[1], report(4));
}

/// Writes to a doorbell signal its eventfd, and make no exit.
#[test]
fn ioeventfds_ring() {
    if !kvm_is_here("ioeventfds_ring") {
        return;
    }
    const ANY: ObjectId = ObjectId(0x2001);
    const SEVEN: ObjectId = ObjectId(0x2002);
    let mut machine = Machine::new(Mode::Long, &["ringer"], Chips::Split);
    machine.wire_ioeventfd(ANY, IoEventAddress::Mmio(0x1000_1000), None);
    machine.wire_ioeventfd(SEVEN, IoEventAddress::Pio(0x700), Some(7));
    let mut device = Device::default();
    run_until(&mut machine, 0, &mut device, 3);
    assert_eq!([machine.rings(ANY), machine.rings(SEVEN)], [3, 3]);
    machine = machine.crash_and_restore();
    let kicks = [machine.rings(ANY), machine.rings(SEVEN)];
    assert_eq!(kicks, [1, 1], "one kick for each");
    run_until(&mut machine, 0, &mut device, 5);
    assert_eq!([machine.rings(ANY), machine.rings(SEVEN)], [2, 2]);
    let eight = Event::Out {
        port: 0x700,
        data: 8_u32.to_le_bytes().to_vec(),
    };
    assert_eq!(device.log, vec![eight; 5]);
}

/// Memory that is not as it was: the exit does not come again, and the guest
/// must not run on.
#[test]
fn wrong_memory_is_noticed() {
    if !kvm_is_here("wrong_memory_is_noticed") {
        return;
    }
    const NOPS: [u8; 2] = [0x90, 0x90];
    const JUMP_TO_SELF: [u8; 2] = [0xeb, 0xfe];
    // Its handler loops, where no single step reaches it.
    const UNDEFINED: [u8; 2] = [0x0f, 0x0b];
    for code in [NOPS, JUMP_TO_SELF, UNDEFINED] {
        let mut machine = exits_machine(Mode::Long, 1, Chips::Kernel);
        let mut device = Device::default();
        // An IN: KVM finishes it later, however it runs the guest.
        run_until(&mut machine, 0, &mut device, 2);
        assert!(run(&mut machine.vcpus[0]));
        let started = Instant::now();
        let restored = machine.crash_and_restore_edited(|vm, memory| {
            if code == UNDEFINED {
                handle_exceptions_for_ever(memory);
            }
            let rip = vm.vcpus[0].regs.rip as usize;
            assert!(rip > CODE as usize);
            memory[rip..rip + 2].copy_from_slice(&code);
        });
        match restored.map(|_| ()) {
            Err(error @ KvmError::Rearm { .. }) => eprintln!("{code:x?}: {error}"),
            other => panic!("{code:x?}: {other:?}"),
        }
        assert!(started.elapsed() < Duration::from_secs(30));
    }
}

/// State that KVM will not take is an error that says which.
#[test]
fn impossible_state_is_refused() {
    if !kvm_is_here("impossible_state_is_refused") {
        return;
    }
    let stopped = || {
        let mut machine = exits_machine(Mode::Long, 1, Chips::Split);
        assert!(run(&mut machine.vcpus[0]));
        machine
    };
    let refused = stopped().crash_and_restore_edited(|vm, _| {
        vm.vcpus[0].msrs.push(vmrestore::dataset::MsrEntry {
            index: 0xdead,
            value: 1,
        });
    });
    let what = refused.map(|_| ());
    assert!(
        matches!(what, Err(KvmError::MsrRefused { index: 0xdead, .. })),
        "{what:?}"
    );
    let refused = stopped().crash_and_restore_edited(|vm, _| vm.vcpus[0].lapic = None);
    let what = refused.map(|_| ());
    assert!(matches!(what, Err(KvmError::Malformed { .. })), "{what:?}");
}

/// Makes the #UD gate lead to a jump to itself.
fn handle_exceptions_for_ever(memory: &mut [u8]) {
    const UD: usize = 6;
    const HANDLER: usize = 0xa000;
    let gate = HANDLER as u64 | 8 << 16 | 0x8e00 << 32;
    let at = IDT as usize + UD * 16;
    memory[at..at + 8].copy_from_slice(&gate.to_le_bytes());
    memory[HANDLER..HANDLER + 2].copy_from_slice(&[0xeb, 0xfe]);
}

/// By injected calls in another process, at each exit of a round.
#[test]
fn injected_into_another_process() {
    if !kvm_is_here("injected_into_another_process") {
        return;
    }
    const TOTAL: usize = 80;
    let mut device = Device::default();
    let mut reference = exits_machine(Mode::Long, 1, Chips::Kernel);
    run_until(&mut reference, 0, &mut device, TOTAL);
    let (log, memory) = (device.log, reference.memory_bytes());
    for stop in [24, 25, 26, 28, 29, 30, 31, 32, 33, 45] {
        let mut device = Device::default();
        let mut machine = exits_machine(Mode::Long, 1, Chips::Kernel);
        run_until(&mut machine, 0, &mut device, stop);
        assert!(run(&mut machine.vcpus[0]));
        let mut remote = injected::Remote::take(machine);
        remote.handle_pending(&mut device);
        while device.log.len() < TOTAL {
            remote.run(Duration::from_secs(60)).expect("KVM_RUN");
            remote.handle_pending(&mut device);
        }
        assert!(device.log == log, "stopped at {stop}: the log differs");
        assert!(
            remote.memory_bytes() == memory,
            "stopped at {stop}: memory differs"
        );
    }
}

/// A guest that makes no exit is stopped when its time is over, and can go on.
#[test]
fn injected_run_is_bounded() {
    if !kvm_is_here("injected_run_is_bounded") {
        return;
    }
    let mut machine = Machine::new(Mode::Long, &["poller"], Chips::Split);
    let mut device = Device::default();
    run_until(&mut machine, 0, &mut device, 1);
    let mut remote = injected::Remote::take(machine);
    for _ in 0..3 {
        let started = Instant::now();
        let result = remote.run(Duration::from_millis(300));
        assert_eq!(result, Err(vmrestore::restore::Errno(libc::EINTR)));
        let ran = started.elapsed();
        assert!(
            ran > Duration::from_millis(250) && ran < Duration::from_secs(20),
            "{ran:?}"
        );
    }
}

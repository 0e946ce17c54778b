//! The same in earnest: the VM is made in another process, by system calls
//! that are injected into it. That process is a fork of the test, so guest
//! memory is there already, at its old address.

use crate::device::{Device, handle_exit};
use crate::machine::{MEMORY, Machine, chain};
use kvm_bindings::kvm_run;
use std::time::Duration;
use vm_memory::{GuestAddress, GuestMemoryBackend};
use vmrestore::restore::inject::{Scratch, Tracee};
use vmrestore::restore::{Errno, Syscalls, kvm};
use vmrestore::sys::{clone::idle_child, ptrace, task_control};

// The instruction by which the child makes its calls; a fork has it where the
// test has it.
core::arch::global_asm!(
    ".pushsection .text",
    "tiny_syscall: syscall",
    "int3",
    ".popsection",
);

fn syscall_instruction() -> u64 {
    unsafe extern "C" {
        #[link_name = "tiny_syscall"]
        static INSTRUCTION: u8;
    }
    (&raw const INSTRUCTION) as u64
}

/// A vCPU in another process. Dropped, it takes the process with it.
pub struct Remote {
    tracee: Tracee,
    /// Keeps the fork's copy of the memory where it is.
    machine_memory: vm_memory::GuestMemoryMmap,
    vcpu: i32,
    run: u64,
}

/// Bytes of the area that exits are in: kvm_run and the port data.
const AREA: usize = 8192;
const KVM_RUN: u64 = 0xae80;

impl Remote {
    /// Takes a machine's one vCPU into a new process.
    pub fn take(mut machine: Machine) -> Self {
        let snapshot = crate::snapshot::read(&mut machine);
        let Machine {
            vcpus,
            vm,
            kvm,
            memory,
            ..
        } = machine;
        drop((vcpus, vm, kvm));

        // Arguments of calls go here, in the fork's copy of it.
        let arguments: &'static mut [u64] = vec![0; Scratch::LEN as usize / 8].leak();
        let start = arguments.as_ptr() as u64;
        let pid = idle_child().expect("fork");
        ptrace::seize(pid).expect("PTRACE_SEIZE");
        ptrace::interrupt(pid).expect("PTRACE_INTERRUPT");
        ptrace::wait(pid).expect("stop");
        ptrace::set_signal_mask(pid, u64::MAX).expect("signal mask");
        let mut tracee =
            Tracee::new(pid, syscall_instruction(), Scratch { start }).expect("/proc/PID/mem");

        let vms = [snapshot];
        let files = kvm::create(&mut tracee, &vms, &|_| None)
            .and_then(|files| {
                kvm::finish(&mut tracee, &vms, &files, &|_| None)?;
                Ok(files)
            })
            .unwrap_or_else(|e| panic!("{}", chain(&e)));
        let vcpu = files.vcpus[&vms[0].vcpus[0].id];
        let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
        let args = [0, 3 * 4096, prot as u64, flags as u64, vcpu as u64, 0];
        let run = tracee.syscall(libc::SYS_mmap, args).expect("kvm_run");
        Self {
            tracee,
            machine_memory: memory,
            vcpu,
            run,
        }
    }

    /// Handles the exit that waits.
    pub fn handle_pending(&mut self, device: &mut Device) {
        let mut area = vec![0_u64; AREA / 8];
        let mut bytes = vec![0; AREA];
        self.tracee.read(self.run, &mut bytes).expect("kvm_run");
        for (word, bytes) in area.iter_mut().zip(bytes.chunks_exact(8)) {
            *word = u64::from_ne_bytes(bytes.try_into().expect("8 bytes"));
        }
        // SAFETY: a copy of the two pages, aligned, that nobody else has.
        unsafe { handle_exit(area.as_mut_ptr().cast::<kvm_run>(), device) };
        let bytes: Vec<u8> = area.iter().flat_map(|word| word.to_ne_bytes()).collect();
        self.tracee.write(self.run, &bytes).expect("kvm_run");
    }

    /// Runs the vCPU, for a time at most.
    pub fn run(&mut self, limit: Duration) -> Result<u64, Errno> {
        let args = [self.vcpu as u64, KVM_RUN, 0, 0, 0, 0];
        self.tracee.syscall_within(libc::SYS_ioctl, args, limit)
    }

    /// All of the guest's memory.
    pub fn memory_bytes(&mut self) -> Vec<u8> {
        let at = self.machine_memory.get_host_address(GuestAddress(0));
        let mut bytes = vec![0; MEMORY];
        self.tracee
            .read(at.expect("address") as u64, &mut bytes)
            .expect("memory");
        bytes
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        let pid = self.tracee.tid;
        task_control::kill(pid, libc::SIGKILL).expect("kill");
        while !matches!(ptrace::wait(pid), Ok(ptrace::Stop::Gone(_)) | Err(_)) {}
    }
}

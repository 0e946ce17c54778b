//! The virtual machine: memory, in-kernel irqchip and PIT, vCPUs as the boot
//! protocol wants them.

use std::fs::File;
use std::io::Error;
use std::os::fd::{AsRawFd, FromRawFd};

use kvm_bindings::{
    CpuId, KVM_MAX_CPUID_ENTRIES, kvm_fpu, kvm_pit_config, kvm_regs, kvm_segment,
    kvm_userspace_memory_region,
};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use linux_loader::configurator::linux::LinuxBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params};
use linux_loader::loader::{BzImage, KernelLoader};
use vm_memory::{
    Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
};

use crate::acpi;

/// What can go wrong at the start; the stand-in gives up then.
pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

const GDT: u64 = 0x500;
const ZERO_PAGE: u64 = 0x7000;
const STACK: u64 = 0x8ff0;
const PML4: u64 = 0x9000;
const PDPT: u64 = 0xa000;
const PAGE_DIRECTORY: u64 = 0xb000;
const COMMAND_LINE: u64 = 0x2_0000;
/// Where memory below 1 MiB ends for the kernel; ACPI tables are behind it.
const LOW_END: u64 = 0x9_fc00;
const HIGH_START: u64 = 0x10_0000;
/// `EFER.LME | EFER.LMA`, `CR0.PE | CR0.ET | CR0.PG`, `CR4.PAE`.
const EFER: u64 = 0x500;
const CR0: u64 = 0x8000_0011;
const CR4: u64 = 0x20;

/// A VM whose vCPUs have not run.
pub struct Machine {
    /// The system's descriptor; a VMM keeps it.
    pub _kvm: Kvm,
    pub vm: VmFd,
    pub memory: GuestMemoryMmap,
    /// Each vCPU by two descriptors and two mappings of its `kvm_run`, as
    /// Firecracker has them.
    pub vcpus: Vec<[VcpuFd; 2]>,
}

/// What to boot.
pub struct Boot<'a> {
    pub kernel: &'a str,
    pub initrd: &'a str,
    pub command_line: &'a str,
    pub cpus: u8,
    pub memory_mib: usize,
    /// A memfd instead of anonymous memory.
    pub shared: bool,
}

impl Machine {
    /// Makes the VM and loads the kernel.
    pub fn new(boot: &Boot<'_>) -> Result<Self> {
        let kvm = Kvm::new()?;
        let vm = kvm.create_vm()?;
        vm.set_tss_address(0xfffb_d000)?;
        vm.create_irq_chip()?;
        vm.create_pit2(kvm_pit_config::default())?;
        let memory = memory(boot)?;
        for (slot, region) in (0u32..).zip(memory.iter()) {
            let place = kvm_userspace_memory_region {
                slot,
                guest_phys_addr: region.start_addr().0,
                memory_size: region.len(),
                userspace_addr: memory.get_host_address(region.start_addr())? as u64,
                flags: 0,
            };
            // SAFETY: the memory is kept as long as the VM, to the end.
            unsafe { vm.set_user_memory_region(place) }?;
        }
        let entry = load(boot, &memory)?;
        tables(&memory)?;
        let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?;
        let mut vcpus = Vec::new();
        for index in 0..boot.cpus {
            let first = vm.create_vcpu(index.into())?;
            first.set_cpuid2(&of_cpu(cpuid.clone(), index, boot.cpus))?;
            start_state(&first, entry)?;
            // SAFETY: a new descriptor of the same vCPU, owned by what is made of it.
            let second = unsafe {
                let copy = libc::fcntl(first.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 0);
                if copy < 0 {
                    return Err(Error::last_os_error().into());
                }
                vm.create_vcpu_from_rawfd(copy)?
            };
            vcpus.push([first, second]);
        }
        Ok(Self {
            _kvm: kvm,
            vm,
            memory,
            vcpus,
        })
    }
}

fn memory(boot: &Boot<'_>) -> Result<GuestMemoryMmap> {
    let size = boot.memory_mib << 20;
    let start = GuestAddress(0);
    if !boot.shared {
        return Ok(GuestMemoryMmap::from_ranges(&[(start, size)])?);
    }
    // SAFETY: a NUL-terminated name; the descriptor belongs to the file.
    let file = unsafe {
        let fd = libc::memfd_create(c"stand-in-memory".as_ptr(), libc::MFD_CLOEXEC);
        if fd < 0 {
            return Err(Error::last_os_error().into());
        }
        File::from_raw_fd(fd)
    };
    file.set_len(size as u64)?;
    let ranges = [(start, size, Some(FileOffset::new(file, 0)))];
    Ok(GuestMemoryMmap::from_ranges_with_files(ranges)?)
}

/// Kernel, initrd, command line, tables; gives the 64-bit entry point.
fn load(boot: &Boot<'_>, memory: &GuestMemoryMmap) -> Result<u64> {
    let mut image = File::open(boot.kernel)?;
    let loaded = BzImage::load(memory, None, &mut image, Some(GuestAddress(HIGH_START)))?;
    let mut header = loaded.setup_header.ok_or("no setup header")?;

    let initrd = std::fs::read(boot.initrd)?;
    let end = memory.last_addr().0 + 1;
    let at = (end - initrd.len() as u64) & !0xfff;
    memory.write_slice(&initrd, GuestAddress(at))?;
    memory.write_slice(boot.command_line.as_bytes(), GuestAddress(COMMAND_LINE))?;
    memory.write_obj(
        0u8,
        GuestAddress(COMMAND_LINE + boot.command_line.len() as u64),
    )?;

    header.type_of_loader = 0xff;
    header.cmd_line_ptr = COMMAND_LINE as u32;
    header.cmdline_size = boot.command_line.len() as u32;
    header.ramdisk_image = at as u32;
    header.ramdisk_size = initrd.len() as u32;
    let mut params = boot_params {
        hdr: header,
        acpi_rsdp_addr: acpi::write(memory, boot.cpus)?,
        ..boot_params::default()
    };
    for (start, end) in [(0, LOW_END), (HIGH_START, end)] {
        const RAM: u32 = 1;
        let index = usize::from(params.e820_entries);
        params.e820_table[index] = boot_e820_entry {
            addr: start,
            size: end - start,
            r#type: RAM,
        };
        params.e820_entries += 1;
    }
    let params = BootParams::new(&params, GuestAddress(ZERO_PAGE));
    LinuxBootConfigurator::write_bootparams(&params, memory)?;
    Ok(loaded.kernel_load.0 + 0x200)
}

/// A GDT, and the first GiB mapped onto itself.
fn tables(memory: &GuestMemoryMmap) -> Result<()> {
    let gdt: [u64; 4] = [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff];
    for (i, entry) in (0u64..).zip(gdt) {
        memory.write_obj(entry, GuestAddress(GDT + i * 8))?;
    }
    memory.write_obj(PDPT | 3, GuestAddress(PML4))?;
    memory.write_obj(PAGE_DIRECTORY | 3, GuestAddress(PDPT))?;
    for i in 0..512u64 {
        memory.write_obj(i << 21 | 0x83, GuestAddress(PAGE_DIRECTORY + i * 8))?;
    }
    Ok(())
}

/// CPUID as one vCPU sees it.
fn of_cpu(mut cpuid: CpuId, index: u8, count: u8) -> CpuId {
    for entry in cpuid.as_mut_slice() {
        match entry.function {
            1 => {
                entry.ebx = entry.ebx & 0xff00 | u32::from(index) << 24 | u32::from(count) << 16;
                // The TSC-deadline timer, and that there is a hypervisor.
                entry.ecx |= 1 << 24 | 1 << 31;
            }
            0xb | 0x1f => entry.edx = index.into(),
            _ => {}
        }
    }
    cpuid
}

/// What the 64-bit boot protocol asks for (the first CPU; the others wait for
/// their start-up interrupt).
fn start_state(vcpu: &VcpuFd, entry: u64) -> Result<()> {
    let segment = |selector: u16, type_: u8, l: u8| kvm_segment {
        base: 0,
        limit: 0xf_ffff,
        selector,
        type_,
        present: 1,
        dpl: 0,
        db: 1 - l,
        s: 1,
        l,
        g: 1,
        ..Default::default()
    };
    let mut sregs = vcpu.get_sregs()?;
    sregs.cs = segment(0x10, 11, 1);
    let data = segment(0x18, 3, 0);
    (sregs.ds, sregs.es, sregs.fs) = (data, data, data);
    (sregs.gs, sregs.ss) = (data, data);
    sregs.gdt.base = GDT;
    sregs.gdt.limit = 31;
    sregs.cr3 = PML4;
    (sregs.cr0, sregs.cr4, sregs.efer) = (CR0, CR4, EFER);
    vcpu.set_sregs(&sregs)?;
    vcpu.set_regs(&kvm_regs {
        rip: entry,
        rsp: STACK,
        rbp: STACK,
        rsi: ZERO_PAGE,
        rflags: 2,
        ..Default::default()
    })?;
    Ok(vcpu.set_fpu(&kvm_fpu {
        fcw: 0x37f,
        mxcsr: 0x1f80,
        ..Default::default()
    })?)
}

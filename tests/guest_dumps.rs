//! What `guest` reads of a virtual machine, against what the virtual machine itself says: its own
//! descriptor tables, page tables and clock page, in its own memory.
//!
//! Needs a dump with a running 64-bit Linux guest whose memory is in it (`makedumpfile -d 17`):
//! `VMRESTORE_TEST_DUMP=vmcore cargo test --test guest_dumps -- --ignored`.

use std::sync::Arc;

use vmrestore::dataset::{Host, Segment, Vcpu, VcpuActivity, Vm};
use vmrestore::dump::Dump;
use vmrestore::guest::{self, FoundBy};
use vmrestore::kernel::{AddressSpace, Kernel, containers};

const NEEDS: &str = "VMRESTORE_TEST_DUMP must name a dump";

fn open() -> Kernel {
    let path = std::env::var_os("VMRESTORE_TEST_DUMP").expect(NEEDS);
    let dump = Dump::open(path.as_ref()).unwrap();
    let info = dump.vmcoreinfo().expect("a VMCOREINFO note").to_owned();
    Kernel::open(Arc::new(dump), &info).unwrap()
}

/// The time of the crash as far as these tests need it: CLOCK_MONOTONIC at the last tick.
fn host(kernel: &Kernel) -> Host {
    Host {
        release: kernel.release().to_owned(),
        version: String::new(),
        hostname: String::new(),
        realtime_ns: 0,
        monotonic_ns: 0,
        boottime_ns: 0,
        tsc_khz: 0,
        tsc: 0,
    }
}

/// A guest's memory, by its own physical and virtual addresses.
struct Memory<'k> {
    vmm: AddressSpace<'k>,
    vm: &'k Vm,
}

impl<'k> Memory<'k> {
    fn new(kernel: &'k Kernel, vm: &'k Vm) -> Memory<'k> {
        let pgd = kernel
            .object("kvm", vm.id.0)
            .unwrap()
            .follow("mm")
            .unwrap()
            .ptr("pgd")
            .unwrap();
        Memory {
            vmm: AddressSpace::new(kernel, pgd).unwrap(),
            vm,
        }
    }

    fn physical(&self, address: u64, buf: &mut [u8]) {
        let slot = self
            .vm
            .memslots
            .iter()
            .find(|s| s.address_space == 0 && address.wrapping_sub(s.guest_address) < s.size)
            .unwrap_or_else(|| panic!("no memslot has {address:#x}"));
        let user = slot.user_address + (address - slot.guest_address);
        self.vmm.read(user, buf).unwrap();
    }

    fn physical_u64(&self, address: u64) -> u64 {
        let mut raw = [0; 8];
        self.physical(address, &mut raw);
        u64::from_le_bytes(raw)
    }

    /// Reads through the guest's own page tables. `buf` must not cross a page.
    fn linear(&self, vcpu: &Vcpu, address: u64, buf: &mut [u8]) {
        const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
        let five_levels = vcpu.sregs.cr4 >> 12 & 1 != 0;
        let mut table = vcpu.sregs.cr3 & ADDRESS;
        let mut shift = if five_levels { 48 } else { 39 };
        loop {
            let entry = self.physical_u64(table + (address >> shift & 511) * 8);
            assert!(
                entry & 1 != 0,
                "{address:#x} is not mapped in the guest: entry {entry:#x} at bit {shift}"
            );
            let huge = shift <= 30 && shift > 12 && entry >> 7 & 1 != 0;
            if huge || shift == 12 {
                let within = (1_u64 << shift) - 1;
                return self.physical((entry & ADDRESS & !within) | (address & within), buf);
            }
            table = entry & ADDRESS;
            shift -= 9;
        }
    }

    fn linear_u64(&self, vcpu: &Vcpu, address: u64) -> u64 {
        let mut raw = [0; 8];
        self.linear(vcpu, address, &mut raw);
        u64::from_le_bytes(raw)
    }
}

/// Runs `check` on every vCPU that had come to life.
fn each_vcpu(check: impl Fn(&Kernel, &Vm, &Memory<'_>, &Vcpu)) {
    let kernel = open();
    let guests = guest::guests(&kernel).unwrap();
    assert!(!guests.is_empty(), "the dump has no guest");
    let mut seen = 0;
    for guest in &guests {
        let (vm, _) = guest::extract(&kernel, guest.vm, &host(&kernel)).unwrap();
        let memory = Memory::new(&kernel, &vm);
        for vcpu in &vm.vcpus {
            const LONG_MODE_ACTIVE: u64 = 1 << 10;
            if vcpu.sregs.efer & LONG_MODE_ACTIVE != 0 {
                check(&kernel, &vm, &memory, vcpu);
                seen += 1;
            }
        }
    }
    assert!(seen > 0, "no vCPU was in 64-bit mode");
}

#[test]
#[ignore = "needs a dump: set VMRESTORE_TEST_DUMP"]
fn both_ways_lead_to_the_same_guests() {
    let kernel = open();
    for guest in guest::guests(&kernel).unwrap() {
        assert_eq!(guest.found_by, FoundBy::Both, "{guest:?}");
        assert!(guest.pid > 1 && guest.vcpus > 0 && guest.memory_bytes > 0);
        // The owner's memory is the VM's, by yet another way: the task list.
        let mm = kernel.object("kvm", guest.vm).unwrap().ptr("mm").unwrap();
        let first = kernel.symbol("init_task").unwrap();
        let tasks = kernel.object("task_struct", first).unwrap();
        let tasks = containers::list(&tasks.get("tasks").unwrap(), "task_struct", "tasks").unwrap();
        let owner = tasks
            .iter()
            .find(|t| t.i("pid").unwrap() == i64::from(guest.pid))
            .unwrap();
        assert_eq!(owner.ptr("mm").unwrap(), mm);
        assert_eq!(owner.get("comm").unwrap().string().unwrap(), guest.vmm);
    }
}

#[test]
#[ignore = "needs a dump: set VMRESTORE_TEST_DUMP"]
fn the_next_instruction_and_the_stack_are_mapped() {
    each_vcpu(|_, _, memory, vcpu| {
        assert_eq!(vcpu.sregs.cr0 & 0x8000_0001, 0x8000_0001, "PG and PE");
        assert_eq!(vcpu.sregs.cr4 & 0x20, 0x20, "PAE");
        assert_eq!(vcpu.regs.rflags & 2, 2);
        let mut code = [0; 1];
        memory.linear(vcpu, vcpu.regs.rip, &mut code);
        memory.linear_u64(vcpu, vcpu.regs.rsp & !7);
        let user = vcpu.sregs.cs.dpl == 3;
        assert_eq!(user, vcpu.regs.rip < 1 << 63, "ring and RIP agree");
        if matches!(vcpu.activity, VcpuActivity::Halted) {
            // HLT is F4, and RIP stands behind it.
            memory.linear(vcpu, vcpu.regs.rip - 1, &mut code);
            assert_eq!(code[0], 0xf4, "a halted vCPU has executed HLT");
        }
    });
}

/// The hidden parts of CS, SS and TR, against the guest's GDT, which they were loaded from.
#[test]
#[ignore = "needs a dump: set VMRESTORE_TEST_DUMP"]
fn segments_are_what_the_guests_gdt_says() {
    each_vcpu(|_, _, memory, vcpu| {
        let gdt = vcpu.sregs.gdt;
        assert!(gdt.limit >= 0x7f, "Linux's GDT has 16 entries");
        let descriptor =
            |selector: u16| memory.linear_u64(vcpu, gdt.base + u64::from(selector & !7));
        for (name, seg) in [("cs", vcpu.sregs.cs), ("ss", vcpu.sregs.ss)] {
            if seg.selector < 4 {
                continue;
            }
            let wanted = decode(descriptor(seg.selector));
            // Linux's code descriptors may not have the accessed bit; the CPU's copy has.
            assert_eq!(seg.type_ | 1, wanted.type_ | 1, "{name}");
            assert_eq!(
                (seg.s, seg.dpl, seg.present, seg.l, seg.db, seg.g),
                (
                    wanted.s,
                    wanted.dpl,
                    wanted.present,
                    wanted.l,
                    wanted.db,
                    wanted.g
                ),
                "{name}: {seg:?}"
            );
        }
        let tr = vcpu.sregs.tr;
        let low = decode(descriptor(tr.selector));
        let high = memory.linear_u64(vcpu, gdt.base + u64::from(tr.selector & !7) + 8);
        assert_eq!(
            tr.base,
            low.base | high << 32,
            "a TSS descriptor has 16 bytes"
        );
        assert_eq!(tr.limit, low.limit);
        assert_eq!(tr.type_, 11, "a busy 64-bit TSS");
    });
}

/// A descriptor by Intel SDM volume 3, figure 3-8.
fn decode(raw: u64) -> Segment {
    let field = |from: u32, bits: u32| (raw >> from & ((1 << bits) - 1)) as u8;
    let g = field(55, 1);
    let pages = (raw & 0xffff | raw >> 32 & 0xf_0000) as u32;
    Segment {
        base: raw >> 16 & 0xff_ffff | raw >> 32 & 0xff00_0000,
        limit: if g == 1 { pages << 12 | 0xfff } else { pages },
        type_: field(40, 4),
        s: field(44, 1),
        dpl: field(45, 2),
        present: field(47, 1),
        l: field(53, 1),
        db: field(54, 1),
        g,
        ..Segment::default()
    }
}

/// The guest's clock page says what time the guest last knew; it must never see less.
#[test]
#[ignore = "needs a dump: set VMRESTORE_TEST_DUMP"]
fn time_goes_on_from_where_the_guest_knew_it() {
    each_vcpu(|_, vm, memory, vcpu| {
        let msr = |index| vcpu.msrs.iter().find(|m| m.index == index).map(|m| m.value);
        let Some(page) = msr(0x4b56_4d01).filter(|p| p & 1 != 0) else {
            panic!("the guest has no kvmclock");
        };
        let page = page & !1;
        // struct pvclock_vcpu_time_info
        let (timestamp, system_time) = (
            memory.physical_u64(page + 8),
            memory.physical_u64(page + 16),
        );
        let rate = memory.physical_u64(page + 24);
        let (mul, shift) = (rate & 0xffff_ffff, (rate >> 32) as u8 as i8);
        let tsc = msr(0x10).expect("TSC");
        assert!(tsc >= timestamp, "TSC {tsc:#x}, page {timestamp:#x}");
        let passed = tsc - timestamp;
        let scaled = if shift < 0 {
            passed >> -shift
        } else {
            passed << shift
        };
        let guest_sees = system_time + ((u128::from(scaled) * u128::from(mul)) >> 32) as u64;
        let clock = vm.clock.clock_ns;
        // KVM computes the rate in 32 bits.
        assert!(
            clock + 1_000 >= guest_sees && clock < guest_sees + 1_000_000_000,
            "kvmclock {clock}, by the guest's page {guest_sees}"
        );
    });
}

/// What the guest set up once and for all.
#[test]
#[ignore = "needs a dump: set VMRESTORE_TEST_DUMP"]
fn msrs_lead_into_the_guests_kernel() {
    each_vcpu(|_, _, memory, vcpu| {
        let msr = |index| vcpu.msrs.iter().find(|m| m.index == index).map(|m| m.value);
        let entry = msr(0xc000_0082).unwrap();
        assert!(entry >> 63 == 1, "LSTAR {entry:#x}");
        memory.linear(vcpu, entry, &mut [0]);
        let star = msr(0xc000_0081).unwrap();
        assert_eq!(star >> 32, 0x0023_0010, "Linux's selectors");
        let apic = vcpu.lapic.as_ref().expect("an APIC in the kernel");
        let svr = u32::from_le_bytes(apic.regs.0[0xf0..0xf4].try_into().unwrap());
        assert_eq!(svr, 0x1ff, "Linux's spurious vector, and enabled");
    });
}

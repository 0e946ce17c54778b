// SPDX-License-Identifier: GPL-2.0
/*
 * The keeper: saves what only the CPU itself knows as a dying kernel stops it.
 *
 * A kernel that dies with kdump stops every CPU by an NMI, and each of them,
 * the panicking one last, passes crash_save_cpu(), which saves its general
 * registers. What nobody saves are the FPU, SSE, AVX and AMX registers of the
 * thread or the guest that was on the CPU, and a few other registers. This
 * module puts them into memory that is set aside when it is loaded;
 * vmrestore(1) finds them there in the dump.
 *
 * A crash must never be made worse: what runs then takes no lock, allocates
 * nothing, waits for nothing, calls nothing that could, and executes only
 * instructions that were tried when the module was loaded or that no x86-64
 * CPU refuses. It runs once for each CPU. Before that nothing of this runs at
 * all.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/atomic.h>
#include <linux/cpumask.h>
#include <linux/kprobes.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/sched.h>
#include <linux/slab.h>
#include <linux/smp.h>
#include <linux/timekeeping.h>
#include <linux/topology.h>
#include <linux/types.h>
#include <asm/cpufeature.h>
#include <asm/msr.h>
#include <asm/processor.h>
#include <asm/thread_info.h>

#include "vmrestore_keeper.h"

#ifndef CONFIG_X86_64
#error "x86-64 only"
#endif

#define XSAVE_ALIGN 64
#define AREA_OFFSET ALIGN(sizeof(struct keeper_record), XSAVE_ALIGN)
/* Far more than AMX needs (11008 bytes). */
#define AREA_MOST (64 << 10)

#define MSR_EXTD_BIT (1ULL << 10)
#define MSR_X2APIC_CURRENT_COUNT 0x839
#define MSR_XSS 0xda0
#define MSR_XFD 0x1c4

/* Found through the module's symbols: not static, and never removed. */
struct keeper_head vmrestore_keeper __aligned(64) __used = {
	.version = KEEPER_VERSION,
	.head_size = sizeof(struct keeper_head),
	.record_size = sizeof(struct keeper_record),
	.area_offset = AREA_OFFSET,
};

static struct keeper_record **records;
static unsigned int pages_order;
/* KEEPER_HAS_* that this kind of CPU has. */
static u32 features;

/* No exception table: for registers that are known to be there. */
static __always_inline u64 keeper_read_msr(u32 msr)
{
	u32 low, high;

	asm volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(msr));
	return low | (u64)high << 32;
}

static __always_inline u64 keeper_read_xcr0(void)
{
	u32 low, high;

	asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
	return low | (u64)high << 32;
}

static __always_inline void keeper_write_xcr0(u64 value)
{
	asm volatile("xsetbv" : : "a"((u32)value), "d"((u32)(value >> 32)), "c"(0));
}

static __always_inline void keeper_save_area(void *area, u64 components)
{
	asm volatile("xsave64 %0"
		     : "+m"(*(u8(*)[AREA_MOST])area)
		     : "a"((u32)components), "d"((u32)(components >> 32))
		     : "memory");
}

static __always_inline u64 keeper_read_pkru(void)
{
	u32 low, high;

	asm volatile("rdpkru" : "=a"(low), "=d"(high) : "c"(0));
	return low;
}

static __always_inline u64 keeper_read_cr4(void)
{
	u64 value;

	asm volatile("mov %%cr4, %0" : "=r"(value));
	return value;
}

static __always_inline u64 keeper_read_cr0(void)
{
	u64 value;

	asm volatile("mov %%cr0, %0" : "=r"(value));
	return value;
}

#define READ_DR(number)							\
	({								\
		u64 value;						\
		asm volatile("mov %%db" #number ", %0" : "=r"(value));	\
		value;							\
	})

static __always_inline void keeper_save_cpu(struct keeper_record *record)
{
	u64 cr4 = keeper_read_cr4();
	u32 valid = 0;

	/*
	 * XSAVE faults when CR4.OSXSAVE is clear or CR0.TS is set. Linux does
	 * neither; but a kernel that dies may have done anything.
	 */
	if ((features & KEEPER_HAS_AREA) && (cr4 & X86_CR4_OSXSAVE)) {
		u64 loaded = keeper_read_xcr0();

		record->xcr0 = loaded;
		valid |= KEEPER_HAS_XCR0;
		if (!(keeper_read_cr0() & X86_CR0_TS)) {
			/*
			 * Where KVM has not yet put the host's XCR0 back, the
			 * guest's may name fewer components, and XSAVE would
			 * leave out the others, which are in the CPU all the
			 * same. The value is one that this CPU has run with.
			 */
			if (loaded != vmrestore_keeper.xcr0)
				keeper_write_xcr0(vmrestore_keeper.xcr0);
			record->saved = vmrestore_keeper.xcr0;
			keeper_save_area((u8 *)record + AREA_OFFSET, vmrestore_keeper.xcr0);
			if (loaded != vmrestore_keeper.xcr0)
				keeper_write_xcr0(loaded);
			valid |= KEEPER_HAS_AREA;
		}
	}
	if (features & KEEPER_HAS_XSS) {
		record->xss = keeper_read_msr(MSR_XSS);
		valid |= KEEPER_HAS_XSS;
	}
	if (features & KEEPER_HAS_XFD) {
		record->xfd = keeper_read_msr(MSR_XFD);
		valid |= KEEPER_HAS_XFD;
	}
	if (cr4 & X86_CR4_PKE) {
		record->pkru = keeper_read_pkru();
		valid |= KEEPER_HAS_PKRU;
	}
	record->fs_base = keeper_read_msr(MSR_FS_BASE);
	record->gs_base = keeper_read_msr(MSR_GS_BASE);
	record->kernel_gs_base = keeper_read_msr(MSR_KERNEL_GS_BASE);
	/* With DR7.GD set (nobody does), reading one would trap. */
	record->dr7 = READ_DR(7);
	if (!(record->dr7 & (1 << 13))) {
		record->dr[0] = READ_DR(0);
		record->dr[1] = READ_DR(1);
		record->dr[2] = READ_DR(2);
		record->dr[3] = READ_DR(3);
		record->dr6 = READ_DR(6);
	}
	if ((features & KEEPER_HAS_APIC_TIMER) &&
	    (keeper_read_msr(MSR_IA32_APICBASE) & MSR_EXTD_BIT)) {
		record->apic_timer = keeper_read_msr(MSR_X2APIC_CURRENT_COUNT);
		valid |= KEEPER_HAS_APIC_TIMER;
	}
	record->tsc = rdtsc();
	/* Made for NMIs: it reads one of two copies, and takes no lock. */
	record->monotonic_ns = ktime_get_mono_fast_ns();
	valid |= KEEPER_HAS_TIME;

	record->task = (u64)current;
	record->pid = current->pid;
	if (test_thread_flag(TIF_NEED_FPU_LOAD))
		valid |= KEEPER_FPU_IN_MEMORY;
	record->valid = valid;
}

static int notrace on_crash_save_cpu(struct kprobe *probe, struct pt_regs *regs)
{
	unsigned int cpu = raw_smp_processor_id();
	struct keeper_record *record;

	if (cpu >= vmrestore_keeper.cpus)
		return 0;
	record = records[cpu];
	/* Once: a kernel that dies twice must not overwrite the first death. */
	if (!record || cmpxchg(&record->state, KEEPER_EMPTY, KEEPER_WRITING) != KEEPER_EMPTY)
		return 0;
	keeper_save_cpu(record);
	smp_wmb();
	WRITE_ONCE(record->state, KEEPER_DONE);
	return 0;
}
NOKPROBE_SYMBOL(on_crash_save_cpu);

static struct kprobe probe = {
	.symbol_name = "crash_save_cpu",
	.pre_handler = on_crash_save_cpu,
};

/* What this CPU has, tried here, where a fault is survived. */
static int __init look_at_cpu(void)
{
	u32 eax, ebx, ecx, edx;
	u32 low, high;

	/* There, control registers and MSRs are the hypervisor's, and KVM is not. */
	if (boot_cpu_has(X86_FEATURE_XENPV)) {
		pr_info("not under Xen\n");
		return -ENODEV;
	}
	if (!boot_cpu_has(X86_FEATURE_XSAVE) || !(keeper_read_cr4() & X86_CR4_OSXSAVE)) {
		pr_info("this CPU has no XSAVE: there is nothing to keep\n");
		return -ENODEV;
	}
	vmrestore_keeper.xcr0 = keeper_read_xcr0();
	/* EBX: bytes for the components that XCR0 names now. */
	cpuid_count(0xd, 0, &eax, &ebx, &ecx, &edx);
	if (ebx < 576 || ebx > AREA_MOST) {
		pr_err("CPUID says that the XSAVE area has %u bytes\n", ebx);
		return -EINVAL;
	}
	vmrestore_keeper.area_size = ebx;
	features = KEEPER_HAS_AREA;
	cpuid_count(0xd, 1, &eax, &ebx, &ecx, &edx);
	if ((eax & (1 << 3)) && !rdmsr_safe(MSR_XSS, &low, &high))
		features |= KEEPER_HAS_XSS;
	if ((eax & (1 << 4)) && !rdmsr_safe(MSR_XFD, &low, &high))
		features |= KEEPER_HAS_XFD;
	if (boot_cpu_has(X86_FEATURE_X2APIC) && !rdmsr_safe(MSR_IA32_APICBASE, &low, &high))
		features |= KEEPER_HAS_APIC_TIMER;
	return 0;
}

static void drop_records(void)
{
	unsigned int cpu;

	vmrestore_keeper.records = 0;
	for (cpu = 0; records && cpu < vmrestore_keeper.cpus; cpu++)
		if (records[cpu])
			free_pages((unsigned long)records[cpu], pages_order);
	kfree(records);
	records = NULL;
}

static int __init keeper_init(void)
{
	unsigned int cpu;
	int error = look_at_cpu();

	if (error)
		return error;
	vmrestore_keeper.cpus = nr_cpu_ids;
	pages_order = get_order(AREA_OFFSET + vmrestore_keeper.area_size);
	records = kcalloc(nr_cpu_ids, sizeof(*records), GFP_KERNEL);
	if (!records)
		return -ENOMEM;
	for_each_possible_cpu(cpu) {
		/*
		 * Whole pages of the direct map: aligned, never moved, never
		 * faulting.
		 */
		struct page *page = alloc_pages_node(cpu_to_node(cpu), GFP_KERNEL | __GFP_ZERO,
						     pages_order);

		if (!page) {
			error = -ENOMEM;
			goto failed;
		}
		records[cpu] = page_address(page);
		records[cpu]->magic = KEEPER_RECORD_MAGIC;
		records[cpu]->cpu = cpu;
	}
	vmrestore_keeper.records = (u64)records;
	memcpy(vmrestore_keeper.magic, KEEPER_HEAD_MAGIC, sizeof(vmrestore_keeper.magic));
	error = register_kprobe(&probe);
	if (error) {
		pr_err("no probe on crash_save_cpu: %d (CONFIG_KPROBES, CONFIG_KEXEC_CORE?)\n", error);
		goto failed;
	}
	pr_info("ready: %u bytes of registers for each of %u CPUs\n", vmrestore_keeper.area_size,
		num_possible_cpus());
	return 0;

failed:
	drop_records();
	return error;
}

static void __exit keeper_exit(void)
{
	/* Waits until no CPU is in the handler. */
	unregister_kprobe(&probe);
	drop_records();
}

module_init(keeper_init);
module_exit(keeper_exit);

MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Saves each CPU's FPU registers as a dying kernel stops it, for vmrestore");
MODULE_VERSION("1.0");

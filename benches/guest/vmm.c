/* The smallest VMM with a large guest, for benches/guest: one vCPU in long mode, in one memslot of MIB.
 *
 * vmm MIB huge|small PERIOD
 *
 * All memory is touched and holds text, of which every PERIOD bytes of a page are alike; the first word of
 * page N is N ^ SALT. The guest reads a page at random, sees that it is the right one, counts those that are
 * not, and halts, which is an exit that asks nothing of the VMM; and so on. The VMM looks at the clock at each
 * exit and keeps a REPORT at an address that whoever measures knows.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define REPORT 0x100000000000ul
#define MEMORY 0x200000000000ul
#define SALT 0x5eed5eed5eed5eedul
/* Pages at the bottom that are the machine's: tables, code. */
#define OWN 64
/* ns without an exit: it was dead in between. */
#define DEAD 20000000000ul
#define TEXT (1 << 22)

struct report {
	uint64_t magic, pages;
	/* CLOCK_REALTIME in ns: of the last exit; of the first exit of this life, if it is not the first. */
	uint64_t last, back;
	/* Exits in this life; of pages that were not what they should be; ns between two exits at most. */
	uint64_t exits, wrong, longest;
	/* Exits by the time that they took, in steps of 2 us; the last step: what took longer. */
	uint64_t steps[1024];
};

extern char guest_begin[], guest_end[];
asm(".pushsection .rodata\n"
    "guest_begin:\n"
    /* rsi: state, rbp: pages - 1, rbx: SALT, r8: wrong pages */
    "1: mov %rsi, %rax\n shl $13, %rax\n xor %rax, %rsi\n"
    "   mov %rsi, %rax\n shr $7, %rax\n xor %rax, %rsi\n"
    "   mov %rsi, %rax\n shl $17, %rax\n xor %rax, %rsi\n"
    "   mov %rsi, %rdx\n and %rbp, %rdx\n cmp $64, %rdx\n jae 2f\n add $64, %rdx\n"
    "2: mov %rdx, %rcx\n xor %rbx, %rcx\n shl $12, %rdx\n"
    "   cmp %rcx, (%rdx)\n je 3f\n inc %r8\n mov %r8, 0x20000\n"
    "3: hlt\n jmp 1b\n"
    "guest_end:\n"
    ".popsection\n");

static uint64_t now(void)
{
	struct timespec t;
	syscall(SYS_clock_gettime, CLOCK_REALTIME, &t);
	return t.tv_sec * 1000000000ul + t.tv_nsec;
}

static void check(int good, const char *what)
{
	if (!good) {
		write(2, what, strlen(what));
		write(2, "\n", 1);
		exit(1);
	}
}

static void *map(unsigned long at, size_t size)
{
	void *p = mmap((void *)at, size, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0);
	check(p == (void *)at, "mmap");
	return p;
}

static uint64_t chance(void)
{
	static uint64_t state = 88172645463325252ul;
	state ^= state << 13;
	state ^= state >> 7;
	return state ^= state << 17;
}

static void fill(char *memory, uint64_t pages, unsigned period)
{
	char *text = malloc(TEXT), words[512][12];
	for (int n = 0; n < 512; n++) {
		int length = 2 + chance() % 9;
		for (int i = 0; i < length; i++)
			words[n][i] = "etaoinshrdlucmfwypvbgkjqxz"[chance() % (6 + chance() % 20)];
		words[n][length] = 0;
	}
	for (char *at = text; at < text + TEXT - 16;) {
		/* Some words are frequent. */
		const char *word = words[chance() % 2 ? chance() % 32 : chance() % 512];
		at = stpcpy(at, word);
		*at++ = chance() % 10 ? ' ' : '\n';
	}
	for (uint64_t page = 0; page < pages; page++) {
		char *at = memory + page * 4096;
		const char *from = text + (page * 2654435761u >> 7) % (TEXT / 4096 - 1) * 4096;
		for (unsigned done = 0; done < 4096; done += period)
			memcpy(at + done, from, period);
		*(uint64_t *)at = page ^ SALT;
	}
	free(text);
}

/* The kernel of whoever measures has another vDSO than the lab's, and not all functions of it. */
static void unmap_vdso(void)
{
	FILE *maps = fopen("/proc/self/maps", "r");
	char line[256];
	unsigned long start, end;
	while (fgets(line, sizeof line, maps))
		if ((strstr(line, "[vvar") || strstr(line, "[vdso]")) &&
		    sscanf(line, "%lx-%lx", &start, &end) == 2)
			munmap((void *)start, end - start);
	fclose(maps);
}

int main(int argc, char **argv)
{
	check(argc == 4, "vmm MIB huge|small PERIOD");
	unmap_vdso();
	uint64_t size = strtoul(argv[1], 0, 10) << 20;
	volatile struct report *report = map(REPORT, 4 * 4096);
	char *memory = map(MEMORY, size);
	madvise(memory, size, argv[2][0] == 'h' ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
	fill(memory, size / 4096, atoi(argv[3]));
	/* PML4, PDPT, page directories of 1 GiB each, code. */
	uint64_t *table = (uint64_t *)memory;
	memset(memory, 0, OWN * 4096);
	table[0x1000 / 8] = 0x2003;
	for (uint64_t n = 0; n < 8; n++)
		table[0x2000 / 8 + n] = (0x3000 + n * 4096) | 3;
	for (uint64_t n = 0; n < 4096; n++)
		table[0x3000 / 8 + n] = n << 21 | 0x83;
	memcpy(memory + 0x10000, guest_begin, guest_end - guest_begin);

	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC), vm = ioctl(kvm, KVM_CREATE_VM, 0);
	check(vm >= 0, "no VM");
	struct kvm_userspace_memory_region slot = { 0, 0, 0, size, MEMORY };
	check(!ioctl(vm, KVM_SET_USER_MEMORY_REGION, &slot), "memslot");
	int vcpu = ioctl(vm, KVM_CREATE_VCPU, 0);
	check(vcpu >= 0, "vCPU");
	struct kvm_run *run = mmap(0, ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), PROT_READ | PROT_WRITE,
				   MAP_SHARED, vcpu, 0);
	check(run != MAP_FAILED, "kvm_run");
	/* What every CPU with long mode has. */
	struct {
		struct kvm_cpuid2 head;
		struct kvm_cpuid_entry2 entries[4];
	} cpuid = { { 4 }, {
		{ .function = 0, .eax = 1, .ebx = 0x68747541, .ecx = 0x444d4163, .edx = 0x69746e65 },
		{ .function = 1, .eax = 0x600f12, .edx = 1 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 8 | 1 << 13 | 1 << 15 | 1 << 24 | 1 << 25 | 1 << 26 },
		{ .function = 0x80000000, .eax = 0x80000001 },
		{ .function = 0x80000001, .edx = 1 << 20 | 1 << 29 },
	} };
	check(!ioctl(vcpu, KVM_SET_CPUID2, &cpuid), "CPUID");
	struct kvm_sregs s;
	ioctl(vcpu, KVM_GET_SREGS, &s);
	struct kvm_segment code = { 0, 0xffffffff, 8, 0xb, 1, 0, 0, 1, 1, 1 };
	struct kvm_segment data = { 0, 0xffffffff, 16, 3, 1, 0, 1, 1, 0, 1 };
	s.cs = code;
	s.ds = s.es = s.fs = s.gs = s.ss = data;
	s.cr0 = 0x80000033;
	s.cr3 = 0x1000;
	s.cr4 = 1 << 5 | 3 << 9;
	s.efer = 0x500;
	check(!ioctl(vcpu, KVM_SET_SREGS, &s), "sregs");
	struct kvm_regs regs = { .rip = 0x10000, .rflags = 2, .rsp = 0x21000, .rsi = 88172645463325252ul,
				 .rbp = size / 4096 - 1, .rbx = SALT };
	check(!ioctl(vcpu, KVM_SET_REGS, &regs), "regs");

	volatile uint64_t *wrong = (uint64_t *)(memory + 0x20000);
	report->magic = SALT;
	report->pages = size / 4096;
	report->last = now();
	for (;;) {
		check(!ioctl(vcpu, KVM_RUN, 0), "KVM_RUN");
		check(run->exit_reason == KVM_EXIT_HLT, "what exit is that?");
		uint64_t time = now(), took = time - report->last;
		if (took > DEAD) {
			report->exits = report->wrong = report->longest = 0;
			for (int n = 0; n < 1024; n++)
				report->steps[n] = 0;
			report->back = time;
		} else {
			report->steps[took / 2000 < 1023 ? took / 2000 : 1023]++;
			if (took > report->longest)
				report->longest = took;
		}
		report->wrong = *wrong;
		report->exits++;
		report->last = time;
	}
}

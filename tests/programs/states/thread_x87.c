/* The x87 unit of a thread in a system call: its stack, its control word.
 * expect: exact */
#include "call.h"
#include <linux/futex.h>
static struct caller c;
static int word = 1;
static unsigned short control = 0x0f7f, control_seen;
static double seen[3];
static long call(void)
{
	long result;
	asm volatile("fninit; fldcw %2; fldpi; fldl2e; fld1\n"
		     "mov %5, %%eax; lea %1, %%rdi; mov $128, %%esi; mov $1, %%edx; xor %%r10d, %%r10d\n"
		     "syscall; mov %%rax, %%rbx\n"
		     "fnstcw %3; fstpl 0+%4; fstpl 8+%4; fstpl 16+%4; fninit"
		     : "=&b"(result), "+m"(word), "+m"(control), "=m"(control_seen), "=m"(seen)
		     : "i"(SYS_futex)
		     : "rax", "rcx", "rdx", "rsi", "rdi", "r10", "r11", "memory");
	return result;
}
static void make(void) { begin(&c, call, SYS_futex); }
static void check(void)
{
	still_in(&c);
	word = 2;
	syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
	back_with(&c, 0, 0);
	SAME(control_seen, control);
	CHECK(seen[0] == 1.0);
	CHECK(seen[1] > 1.44269 && seen[1] < 1.4427);
	CHECK(seen[2] > 3.14159 && seen[2] < 3.1416);
}

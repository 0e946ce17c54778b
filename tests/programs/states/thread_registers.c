/* General registers of a thread in a system call: all that the call keeps.
 * expect: exact */
#include "call.h"
#include <linux/futex.h>
static struct caller c;
static int word = 1;
static volatile unsigned long seen[11];
static long call(void)
{
	register unsigned long result asm("rax") = SYS_futex;
	asm volatile("push %%rbp; push %%rbx; push %%r12; push %%r13; push %%r14; push %%r15\n"
		     "mov $0xb0b0b0b0b0b0b0b0, %%rbp; mov $0xb1b1b1b1b1b1b1b1, %%rbx\n"
		     "mov $0x1212121212121212, %%r12; mov $0x1313131313131313, %%r13\n"
		     "mov $0x1414141414141414, %%r14; mov $0x1515151515151515, %%r15\n"
		     "mov $0x8080808080808080, %%r8; mov $0x9090909090909090, %%r9\n"
		     "mov $128, %%esi; mov $1, %%edx; xor %%r10d, %%r10d\n"
		     "lea %1, %%rdi; std; stc; syscall; pushfq; cld; pop %%rcx\n"
		     "mov %%rbp, 0+%2; mov %%rbx, 8+%2; mov %%r12, 16+%2; mov %%r13, 24+%2\n"
		     "mov %%r14, 32+%2; mov %%r15, 40+%2; mov %%r8, 48+%2; mov %%r9, 56+%2\n"
		     "mov %%rsi, 64+%2; mov %%rdx, 72+%2; mov %%rcx, 80+%2\n"
		     "pop %%r15; pop %%r14; pop %%r13; pop %%r12; pop %%rbx; pop %%rbp"
		     : "+r"(result), "+m"(word), "=m"(seen)
		     :
		     : "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "memory", "cc");
	return (long)result;
}
static void make(void) { begin(&c, call, SYS_futex); }
static void check(void)
{
	still_in(&c);
	word = 2;
	syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
	back_with(&c, 0, 0);
	SAME(seen[0], 0xb0b0b0b0b0b0b0b0);
	SAME(seen[1], 0xb1b1b1b1b1b1b1b1);
	SAME(seen[2], 0x1212121212121212);
	SAME(seen[3], 0x1313131313131313);
	SAME(seen[4], 0x1414141414141414);
	SAME(seen[5], 0x1515151515151515);
	SAME(seen[6], 0x8080808080808080);
	SAME(seen[7], 0x9090909090909090);
	SAME(seen[8], 128);
	SAME(seen[9], 1);
	SAME(seen[10] & 0x401, 0x401);
}

/* FS and GS base: the thread's own area, and a second one.
 * expect: exact */
#include "call.h"
#include <asm/prctl.h>
#include <linux/futex.h>
static struct caller c;
static int word = 1;
static unsigned long area[4] = { 11, 22, 33, 44 };
static __thread unsigned long own = 5;
static long call(void)
{
	unsigned long base, got;
	own = 6;
	if (syscall(SYS_arch_prctl, ARCH_SET_GS, area))
		return -2;
	long result = syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 1, NULL, NULL, 0);
	asm volatile("mov %%gs:16, %0" : "=r"(got));
	syscall(SYS_arch_prctl, ARCH_GET_GS, &base);
	if (got != 33 || base != (unsigned long)area || own != 6)
		return -3;
	syscall(SYS_arch_prctl, ARCH_GET_FS, &base);
	return base == (unsigned long)pthread_self() ? result : -4;
}
static void make(void) { begin(&c, call, SYS_futex); }
static void check(void)
{
	still_in(&c);
	word = 2;
	syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
	back_with(&c, 0, 0);
	SAME(own, 5);
}

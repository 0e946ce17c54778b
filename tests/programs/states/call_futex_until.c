/* A thread that waits for a futex until a moment, and is not woken.
 * expect: exact */
#include "call.h"
#include <linux/futex.h>
static struct caller c;
static int word = 7;
static struct timespec end;
static long call(void)
{
	return syscall(SYS_futex, &word, FUTEX_WAIT_BITSET_PRIVATE, 7, &end, NULL, ~0);
}
static void make(void)
{
	seconds_from_now(&end, CLOCK_MONOTONIC, 20000);
	begin(&c, call, SYS_futex);
}
static void check(void)
{
	still_in(&c);
	SAME(syscall(SYS_futex, &word, FUTEX_WAKE_BITSET_PRIVATE, 1, NULL, NULL, 4), 1);
	back_with(&c, 0, 0);
}

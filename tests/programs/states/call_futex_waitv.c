/* A thread that waits for one of several futexes.
 * expect: exact */
#include "call.h"
#include <linux/futex.h>
static struct caller c;
static unsigned words[2] = { 1, 2 };
static long call(void)
{
	struct futex_waitv all[2] = { { 1, (unsigned long)&words[0], FUTEX_32 | FUTEX_PRIVATE_FLAG, 0 },
				      { 2, (unsigned long)&words[1], FUTEX_32 | FUTEX_PRIVATE_FLAG, 0 } };
	return syscall(449, all, 2, 0, NULL, CLOCK_MONOTONIC);
}
static void make(void)
{
	if (syscall(449, NULL, 0, 0, NULL, 0) == -1 && errno == ENOSYS)
		ABSENT("no futex_waitv");
	begin(&c, call, 449);
}
static void check(void)
{
	still_in(&c);
	words[1] = 3;
	SAME(syscall(SYS_futex, &words[1], FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0), 1);
	back_with(&c, 1, 0);
}

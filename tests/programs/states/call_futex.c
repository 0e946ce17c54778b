/* A thread that waits for a futex without end.
 * expect: exact */
#include "call.h"
#include <linux/futex.h>
static struct caller c;
static int word = 7;
static long call(void) { return syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 7, NULL, NULL, 0); }
static void make(void) { begin(&c, call, SYS_futex); }
static void check(void)
{
	still_in(&c);
	word = 8;
	SAME(syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0), 1);
	back_with(&c, 0, 0);
}

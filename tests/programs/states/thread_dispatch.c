/* A thread whose system calls are signals to itself, as Wine has them; on a kernel before 6.4
 * nobody can set that from outside.
 * expect: refused system calls are signals
 * live: no: procfs does not say */
#include "state.h"
#ifndef PR_SET_SYSCALL_USER_DISPATCH
#define PR_SET_SYSCALL_USER_DISPATCH 59
#endif
static char selector;
static void make(void)
{
	if (prctl(PR_SET_SYSCALL_USER_DISPATCH, 1, 0, 0, &selector))
		ABSENT("no syscall user dispatch");
}
static void check(void) {}

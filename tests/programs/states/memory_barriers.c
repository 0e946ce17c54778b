/* What a process registered for with membarrier, and what it did not.
 * expect: exact
 * live: no: procfs does not tell
 */
#include "state.h"
#define PRIVATE_EXPEDITED 3
#define SYNC_CORE 5
static long barrier(int bit)
{
	return syscall(SYS_membarrier, 1 << bit, 0, 0);
}
static void make(void)
{
	if (barrier(PRIVATE_EXPEDITED + 1))
		ABSENT("no membarrier");
	MUST(barrier(PRIVATE_EXPEDITED));
}
static void check(void)
{
	SAME(barrier(PRIVATE_EXPEDITED), 0);
	CHECK(barrier(SYNC_CORE) < 0 && errno == EPERM);
}

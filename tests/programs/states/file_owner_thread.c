/* A file whose owner is a single thread (F_SETOWN_EX).
 * expect: exact
 * live: no: procfs does not say */
#include "state.h"
static int fds[2];
static void make(void)
{
	struct f_owner_ex owner = { F_OWNER_TID, getpid() };
	MUST(pipe(fds));
	MUST(fcntl(fds[0], F_SETOWN_EX, &owner));
}
static void check(void)
{
	struct f_owner_ex owner = { 0, 0 };
	CHECK(fcntl(fds[0], F_GETOWN_EX, &owner) == 0);
	SAME(owner.type, F_OWNER_TID);
	SAME(owner.pid, getpid());
}

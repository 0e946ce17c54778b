/* A thread in select(2) with a timeout that is far.
 * expect: exact */
#include "call.h"
#include <sys/select.h>
static struct caller c;
static int fds[2];
static long call(void)
{
	fd_set reads;
	struct timeval end = { 20000, 0 };
	FD_ZERO(&reads);
	FD_SET(fds[0], &reads);
	return syscall(SYS_select, fds[0] + 1, &reads, NULL, NULL, &end);
}
static void make(void)
{
	MUST(pipe(fds));
	begin(&c, call, SYS_select);
}
static void check(void)
{
	still_in(&c);
	CHECK(write(fds[1], "x", 1) == 1);
	back_with(&c, 1, 0);
}

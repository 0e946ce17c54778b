/* A thread in pselect(2) on a pipe and a socket, with a mask.
 * expect: exact
 * live: no: procfs does not say what a socket is connected to */
#include "call.h"
#include <sys/select.h>
static struct caller c;
static int fds[2], pair[2];
static fd_set reads;
static long call(void)
{
	sigset_t mask;
	sigfillset(&mask);
	FD_ZERO(&reads);
	FD_SET(fds[0], &reads);
	FD_SET(pair[0], &reads);
	return pselect(pair[1] + 1, &reads, NULL, NULL, NULL, &mask);
}
static void make(void)
{
	MUST(pipe(fds));
	MUST(socketpair(AF_UNIX, SOCK_DGRAM, 0, pair));
	begin(&c, call, SYS_pselect6);
}
static void check(void)
{
	still_in(&c);
	CHECK(write(fds[1], "x", 1) == 1);
	back_with(&c, 1, 0);
	CHECK(FD_ISSET(fds[0], &reads) && !FD_ISSET(pair[0], &reads));
}

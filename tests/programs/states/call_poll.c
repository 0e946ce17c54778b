/* A thread in poll(2) on three files, without end.
 * expect: exact
 * live: no: procfs does not say what a socket is connected to */
#include "call.h"
#include <poll.h>
#include <sys/eventfd.h>
static struct caller c;
static struct pollfd fds[3];
static int pair[2];
static long call(void) { return poll(fds, 3, -1); }
static void make(void)
{
	int p[2];
	MUST(pipe(p));
	MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
	fds[0] = (struct pollfd){ p[0], POLLIN, 0 };
	fds[1] = (struct pollfd){ MUST(eventfd(0, 0)), POLLIN, 0 };
	fds[2] = (struct pollfd){ pair[0], POLLIN, 0 };
	begin(&c, call, SYS_poll);
}
static void check(void)
{
	still_in(&c);
	CHECK(write(pair[1], "x", 1) == 1);
	back_with(&c, 1, 0);
	SAME(fds[2].revents, POLLIN);
	SAME(fds[0].revents | fds[1].revents, 0);
}

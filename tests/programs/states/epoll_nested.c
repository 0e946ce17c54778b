/* Epoll instances that watch each other, and a watch whose descriptor was closed.
 * expect: exact
 * live: no: the test knows watches by their descriptors */
#include "state.h"
#include <sys/epoll.h>
static int outer, inner, fds[2], copy;
static void make(void)
{
	struct epoll_event event = { EPOLLIN, { .u64 = 11 } };
	outer = MUST(epoll_create1(0));
	inner = MUST(epoll_create1(0));
	MUST(pipe(fds));
	MUST(epoll_ctl(inner, EPOLL_CTL_ADD, fds[0], &event));
	event.data.u64 = 22;
	MUST(epoll_ctl(outer, EPOLL_CTL_ADD, inner, &event));
	/* Watched still, by the number that it had. */
	copy = MUST(dup(fds[0]));
	close(fds[0]);
}
static void check(void)
{
	struct epoll_event event;
	SAME(epoll_wait(outer, &event, 1, 0), 0);
	CHECK(write(fds[1], "x", 1) == 1);
	CHECK(epoll_wait(outer, &event, 1, 1000) == 1 && event.data.u64 == 22);
	CHECK(epoll_wait(inner, &event, 1, 1000) == 1 && event.data.u64 == 11);
	char c;
	CHECK(read(copy, &c, 1) == 1);
	SAME(epoll_wait(outer, &event, 1, 0), 0);
}

/* Epoll: level-triggered, edges that were told and that were not, one-shot before and after.
 * expect: exact
 * live: no: procfs does not say which edges were told */
#include "state.h"
#include <sys/epoll.h>
static int epoll, pipes[5][2];
static int wait_all(unsigned *mask)
{
	struct epoll_event events[8];
	int n = epoll_wait(epoll, events, 8, 0);
	*mask = 0;
	for (int i = 0; i < n; i++)
		*mask |= 1 << events[i].data.u32;
	return n;
}
static void make(void)
{
	static const unsigned kinds[5] = { 0, EPOLLET, EPOLLET, EPOLLONESHOT, EPOLLONESHOT };
	unsigned mask;
	epoll = MUST(epoll_create1(EPOLL_CLOEXEC));
	for (unsigned i = 0; i < 5; i++) {
		struct epoll_event event = { EPOLLIN | kinds[i], { .u32 = i } };
		MUST(pipe(pipes[i]));
		MUST(epoll_ctl(epoll, EPOLL_CTL_ADD, pipes[i][0], &event));
	}
	MUST(write(pipes[1][1], "x", 1));
	MUST(write(pipes[3][1], "x", 1));
	MUST(wait_all(&mask) == 2 ? 0 : -1);
	MUST(write(pipes[0][1], "x", 1));
	MUST(write(pipes[2][1], "x", 1));
	MUST(write(pipes[4][1], "x", 1));
}
static void check(void)
{
	unsigned mask;
	wait_all(&mask);
	SAME(mask, 1 << 0 | 1 << 2 | 1 << 4);
	wait_all(&mask);
	SAME(mask, 1 << 0);
	CHECK(write(pipes[1][1], "y", 1) == 1 && write(pipes[3][1], "y", 1) == 1);
	wait_all(&mask);
	SAME(mask, 1 << 0 | 1 << 1);
	struct epoll_event event = { EPOLLIN, { .u32 = 3 } };
	CHECK(epoll_ctl(epoll, EPOLL_CTL_MOD, pipes[3][0], &event) == 0);
	wait_all(&mask);
	SAME(mask, 1 << 0 | 1 << 3);
}

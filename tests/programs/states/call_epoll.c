/* A thread in epoll_wait(2), and one in epoll_pwait(2) with a mask.
 * expect: exact
 * live: no: to be stopped for a look ends the call */
#include "call.h"
#include <sys/epoll.h>
static struct caller c, d;
static int fds[2], epoll, other;
static struct epoll_event got[4], got_too[4];
static long call(void) { return syscall(SYS_epoll_wait, epoll, got, 4, -1); }
static long call_too(void)
{
	sigset_t mask;
	sigfillset(&mask);
	return epoll_pwait(other, got_too, 4, -1, &mask);
}
static void make(void)
{
	struct epoll_event event = { EPOLLIN, { .u64 = 0x1234567812345678 } };
	MUST(pipe(fds));
	epoll = MUST(epoll_create1(0));
	other = MUST(epoll_create1(0));
	MUST(epoll_ctl(epoll, EPOLL_CTL_ADD, fds[0], &event));
	event.events |= EPOLLET;
	MUST(epoll_ctl(other, EPOLL_CTL_ADD, fds[0], &event));
	begin(&c, call, SYS_epoll_wait);
	begin(&d, call_too, SYS_epoll_pwait);
}
static void check(void)
{
	still_in(&c);
	still_in(&d);
	CHECK(write(fds[1], "x", 1) == 1);
	back_with(&c, 1, 0);
	back_with(&d, 1, 0);
	CHECK(got[0].events == EPOLLIN && got[0].data.u64 == 0x1234567812345678);
	CHECK(got_too[0].events == EPOLLIN);
}

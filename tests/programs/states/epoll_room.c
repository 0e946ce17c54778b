/* An edge-triggered watch of a socket whose queue is full of small pieces: the edge at which there
 * is room again comes, whenever that is.
 * expect: exact
 * live: no: procfs does not say that somebody waits for room
 */
#include "tcp.h"
#include <sys/epoll.h>
static int pair[2], poll_fd;
static long sent;
static void make(void)
{
	struct epoll_event event = { .events = EPOLLOUT | EPOLLET };
	char piece[100] = "";
	int on = 1;
	tcp_pair(AF_INET, 7741, pair);
	MUST(setsockopt(pair[0], IPPROTO_TCP, TCP_NODELAY, &on, sizeof on));
	MUST(fcntl(pair[0], F_SETFL, O_NONBLOCK));
	poll_fd = MUST(epoll_create1(0));
	MUST(epoll_ctl(poll_fd, EPOLL_CTL_ADD, pair[0], &event));
	if (epoll_wait(poll_fd, &event, 1, 0) != 1)
		MUST(-1);
	for (long n; (n = send(pair[0], piece, sizeof piece, 0)) > 0; sent += n)
		;
	if (errno != EAGAIN)
		MUST(-1);
}
static void check(void)
{
	struct epoll_event event = { 0 };
	char got[65536];
	while (sent > 0) {
		long n = read(pair[1], got, sizeof got);
		CHECK(n > 0);
		sent -= n;
	}
	SAME(epoll_wait(poll_fd, &event, 1, 20000), 1);
	CHECK(event.events & EPOLLOUT);
}

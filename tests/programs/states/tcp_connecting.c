/* connect(2) of a socket that does not wait, under way: the listener's backlog is full.
 * expect: exact
 * live: no: nobody can look into a backlog
 */
#include "tcp.h"
static int listener, waits[8], count, fd;
static void make(void)
{
	union address at;
	socklen_t len = loopback(&at, AF_INET, 7718);
	listener = listen_at(AF_INET, 7718, 1);
	for (count = 0; count < 8; count++) {
		/* As usual it would give up after two minutes. */
		int tries = 100;
		fd = MUST(socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0));
		MUST(setsockopt(fd, IPPROTO_TCP, TCP_SYNCNT, &tries, sizeof tries));
		if (connect(fd, &at.any, len) == 0 || tcp_await(fd, TCP_ESTABLISHED)) {
			waits[count] = fd;
			MUST(tcp_await_queue(listener, count + 1) ? 0 : -1);
			continue;
		}
		SAME(tcp_state(fd), TCP_SYN_SENT);
		return;
	}
	MUST(-1);
}
static void check(void)
{
	SAME(tcp_state(fd), TCP_SYN_SENT);
	for (int i = 0; i < count; i++) {
		int one = accept(listener, NULL, NULL);
		CHECK(one >= 0 && fcntl(waits[i], F_SETFL, 0) == 0 && talks(waits[i], one));
	}
	/* It asks again after two minutes at most (TCP_RTO_MAX). */
	struct pollfd one = { fd, POLLOUT, 0 };
	CHECK(poll(&one, 1, 150000) == 1 && one.revents == POLLOUT);
	int end = accept(listener, NULL, NULL);
	CHECK(end >= 0 && fcntl(fd, F_SETFL, 0) == 0 && talks(fd, end));
}

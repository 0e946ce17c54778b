/* A thread in connect(2) of TCP: the listener's backlog is full (SYN-SENT).
 * expect: exact
 * live: no: nobody can look into a backlog */
#include "call.h"
#include "tcp.h"
static struct caller c;
static int listener, waits[8], count, fd;
static long call(void)
{
	union address at;
	socklen_t len = loopback(&at, AF_INET, 7737);
	return connect(fd, &at.any, len);
}
static void make(void)
{
	union address at;
	socklen_t len = loopback(&at, AF_INET, 7737);
	int tries = 100;
	listener = listen_at(AF_INET, 7737, 1);
	for (count = 0; count < 8; count++) {
		int one = MUST(socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0));
		if (connect(one, &at.any, len) < 0 && !tcp_await(one, TCP_ESTABLISHED)) {
			close(one);
			break;
		}
		waits[count] = one;
		MUST(tcp_await_queue(listener, count + 1) ? 0 : -1);
	}
	fd = MUST(socket(AF_INET, SOCK_STREAM, 0));
	MUST(setsockopt(fd, IPPROTO_TCP, TCP_SYNCNT, &tries, sizeof tries));
	begin(&c, call, SYS_connect);
	SAME(tcp_state(fd), TCP_SYN_SENT);
}
static void check(void)
{
	still_in(&c);
	for (int i = 0; i < count; i++) {
		int one = accept(listener, NULL, NULL);
		CHECK(one >= 0 && fcntl(waits[i], F_SETFL, 0) == 0 && talks(waits[i], one));
	}
	/* It asks again after two minutes at most (TCP_RTO_MAX). */
	struct pollfd more = { listener, POLLIN, 0 };
	CHECK(poll(&more, 1, 150000) == 1);
	int end = accept(listener, NULL, NULL);
	CHECK(end >= 0);
	back_with(&c, 0, 0);
	CHECK(talks(fd, end));
}

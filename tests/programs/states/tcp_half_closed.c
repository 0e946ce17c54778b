/* TCP connections of which one end has said that it sends no more: FIN-WAIT-2 and
 * CLOSE-WAIT, with data behind; both have, with data not read; and one that was reset.
 * expect: exact
 */
#include "tcp.h"
static int half[2], both[2], reset[2];
static void make(void)
{
	struct linger now = { 1, 0 };
	tcp_pair(AF_INET, 7713, half);
	MUST(write(half[0], "request", 7));
	MUST(shutdown(half[0], SHUT_WR));
	MUST(write(half[1], "answer", 6));
	if (!tcp_await(half[0], TCP_FIN_WAIT2) || !tcp_await(half[1], TCP_CLOSE_WAIT))
		MUST(-1);
	tcp_pair(AF_INET, 7714, both);
	MUST(write(both[0], "last words", 10));
	MUST(shutdown(both[0], SHUT_WR));
	MUST(shutdown(both[1], SHUT_WR));
	if (!tcp_await(both[0], TCP_CLOSE) || !tcp_await(both[1], TCP_CLOSE))
		MUST(-1);
	tcp_pair(AF_INET, 7715, reset);
	MUST(setsockopt(reset[0], SOL_SOCKET, SO_LINGER, &now, sizeof now));
	close(reset[0]);
	if (!tcp_await(reset[1], TCP_CLOSE))
		MUST(-1);
}
static void check(void)
{
	char got[16];
	signal(SIGPIPE, SIG_IGN);
	SAME(tcp_state(half[0]), TCP_FIN_WAIT2);
	SAME(tcp_state(half[1]), TCP_CLOSE_WAIT);
	CHECK(write(half[0], "x", 1) == -1 && errno == EPIPE);
	CHECK(read_all(half[1], got, 7) && !memcmp(got, "request", 7) && at_end(half[1]));
	CHECK(write(half[1], "more", 4) == 4);
	CHECK(read_all(half[0], got, 10) && !memcmp(got, "answermore", 10));
	close(half[1]);
	CHECK(at_end(half[0]));
	SAME(tcp_state(both[1]), TCP_CLOSE);
	CHECK(read_all(both[1], got, 10) && !memcmp(got, "last words", 10) && at_end(both[1]));
	CHECK(at_end(both[0]));
	CHECK(write(both[1], "x", 1) == -1 && errno == EPIPE);
	CHECK(read(reset[1], got, 1) == -1 && errno == ECONNRESET);
	CHECK(at_end(reset[1]));
}

/* A TCP connection whose buffers are full on both sides, with sizes that the program has set:
 * what waits is received, and then goes what had no room.
 * expect: exact
 */
#include "stream.h"
static int pair[2];
static long sent;
static long more(void)
{
	long all = 0, got;
	while (sent < MUCH && (got = send(pair[0], stream_out + sent, MUCH - sent, MSG_DONTWAIT)) > 0)
		sent += got, all += got;
	return all;
}
static void make(void)
{
	int room = 100000;
	stream_begin();
	tcp_pair(AF_INET, 7747, pair);
	MUST(setsockopt(pair[0], SOL_SOCKET, SO_SNDBUF, &room, sizeof room));
	MUST(setsockopt(pair[1], SOL_SOCKET, SO_RCVBUF, &room, sizeof room));
	for (int still = 0; still < 3; still++) {
		if (more())
			still = 0;
		rest(0.05);
	}
}
static void check(void)
{
	long have = 0;
	/* What there is no room for must not be thrown away: it would be sent again later and later. */
	more();
	rest(13);
	while (have < MUCH) {
		struct pollfd both[2] = { { pair[0], sent < MUCH ? POLLOUT : 0, 0 }, { pair[1], POLLIN, 0 } };
		if (poll(both, 2, 10000) <= 0) {
			struct tcp_info info = { 0 };
			socklen_t len = sizeof info;
			getsockopt(pair[0], IPPROTO_TCP, TCP_INFO, &info, &len);
			FAIL("nothing moves behind %ld of %ld sent: unacked %u, rto %u, probes %u, backoff %u, notsent %u",
			     have, sent, info.tcpi_unacked, info.tcpi_rto, info.tcpi_probes,
			     info.tcpi_backoff, info.tcpi_unacked);
		}
		if (both[0].revents)
			more();
		if (both[1].revents) {
			long got = read(pair[1], stream_in, MUCH);
			CHECK(got > 0);
			for (long i = 0; i < got; i++)
				CHECK(stream_in[i] == byte_at(have + i));
			have += got;
		}
	}
	CHECK(talks(pair[0], pair[1]) && talks(pair[1], pair[0]));
}

/* TCP connections whose ends are said and not heard, since data is before them and there is no
 * room: FIN-WAIT-1, LAST-ACK, and CLOSING, which comes back as LAST-ACK.
 * expect: exact
 */
#include "stream.h"
static int first[2], last[2], closing[2];
static long in_first, in_last, in_closing;
/* As much as goes. */
static long fill_up(int fd)
{
	long sent = 0;
	for (int still = 0; still < 3; still++) {
		long got;
		while ((got = send(fd, stream_out + sent, MUCH - sent, MSG_DONTWAIT)) > 0)
			sent += got, still = 0;
		rest(0.05);
	}
	return sent;
}
static void small(int pair[2])
{
	int room = 60000;
	for (int i = 0; i < 2; i++) {
		MUST(setsockopt(pair[i], SOL_SOCKET, SO_SNDBUF, &room, sizeof room));
		MUST(setsockopt(pair[i], SOL_SOCKET, SO_RCVBUF, &room, sizeof room));
	}
}
static void make(void)
{
	stream_begin();
	tcp_pair(AF_INET, 7741, first);
	small(first);
	in_first = fill_up(first[0]);
	MUST(shutdown(first[0], SHUT_WR));
	tcp_pair(AF_INET, 7742, last);
	small(last);
	MUST(shutdown(last[1], SHUT_WR));
	if (!tcp_await(last[0], TCP_CLOSE_WAIT))
		MUST(-1);
	in_last = fill_up(last[0]);
	MUST(shutdown(last[0], SHUT_WR));
	tcp_pair(AF_INET, 7743, closing);
	small(closing);
	in_closing = fill_up(closing[0]);
	MUST(shutdown(closing[0], SHUT_WR));
	MUST(shutdown(closing[1], SHUT_WR));
	if (!tcp_await(first[0], TCP_FIN_WAIT1) || !tcp_await(last[0], TCP_LAST_ACK)
	    || !tcp_await(closing[0], TCP_CLOSING))
		MUST(-1);
}
static void check(void)
{
	signal(SIGPIPE, SIG_IGN);
	/* There may be more room than there was: then the end has been heard by now. */
	CHECK(tcp_state(first[0]) == TCP_FIN_WAIT1 || tcp_state(first[0]) == TCP_FIN_WAIT2);
	CHECK(tcp_state(last[0]) == TCP_LAST_ACK || tcp_state(last[0]) == TCP_CLOSE);
	int *pairs[] = { first, last, closing };
	long counts[] = { in_first, in_last, in_closing };
	for (int i = 0; i < 3; i++) {
		int *pair = pairs[i];
		CHECK(write(pair[0], "x", 1) == -1 && errno == EPIPE);
		for (long have = 0; have < counts[i];) {
			struct pollfd one = { pair[1], POLLIN, 0 };
			CHECK(poll(&one, 1, 15000) == 1);
			long got = read(pair[1], stream_in, counts[i] - have);
			CHECK(got > 0);
			for (long at = 0; at < got; at++)
				CHECK(stream_in[at] == byte_at(have + at));
			have += got;
		}
		CHECK(at_end(pair[1]));
		if (i == 0) {
			CHECK(tcp_await(pair[0], TCP_FIN_WAIT2));
			CHECK(write(pair[1], "answer", 6) == 6);
			char got[8];
			CHECK(read_all(pair[0], got, 6) && !memcmp(got, "answer", 6));
			close(pair[1]);
		}
		CHECK(at_end(pair[0]));
		CHECK(tcp_await(pair[0], TCP_CLOSE));
	}
}

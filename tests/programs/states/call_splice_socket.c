/* A thread in splice(2) from a pipe to a UNIX stream that has no room, and one to a TCP
 * connection: half of what was in the pipe has gone.
 * expect: reconstructed stay mapped
 * live: no: a call that is stopped returns with what it has moved */
#include "stream.h"
#define TOTAL 900000L
static struct caller c, d;
static int from[2], too[2], unix_pair[2], tcp[2];
static long call(void) { return splice(from[0], NULL, unix_pair[0], NULL, TOTAL, 0); }
static long call_too(void) { return splice(too[0], NULL, tcp[0], NULL, TOTAL, 0); }
static void make(void)
{
	int room = 20000;
	stream_begin();
	MUST(pipe(from));
	MUST(pipe(too));
	MUST(fcntl(from[1], F_SETPIPE_SZ, 1 << 20));
	MUST(fcntl(too[1], F_SETPIPE_SZ, 1 << 20));
	MUST(write(from[1], stream_out, TOTAL));
	MUST(write(too[1], stream_out, TOTAL));
	MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, unix_pair));
	tcp_pair(AF_INET, 7736, tcp);
	MUST(setsockopt(tcp[0], SOL_SOCKET, SO_SNDBUF, &room, sizeof room));
	MUST(setsockopt(tcp[1], SOL_SOCKET, SO_RCVBUF, &room, sizeof room));
	begin(&c, call, SYS_splice);
	begin(&d, call_too, SYS_splice);
	settle();
}
static void check(void)
{
	still_in(&c);
	still_in(&d);
	stream_end(unix_pair[1], 0, TOTAL);
	back_with(&c, TOTAL, 0);
	stream_end(tcp[1], 0, TOTAL);
	back_with(&d, TOTAL, 0);
	struct pollfd ends[2] = { { from[0], POLLIN, 0 }, { too[0], POLLIN, 0 } };
	SAME(poll(ends, 2, 100), 0);
}

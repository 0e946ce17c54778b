/* Sockets that were shut down one way, and one whose other end is closed.
 * expect: exact
 * live: no: procfs does not say what a socket is connected to */
#include "state.h"
static int a[2], b[2];
static void make(void)
{
	signal(SIGPIPE, SIG_IGN);
	MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, a));
	MUST(write(a[0], "last", 4));
	MUST(shutdown(a[0], SHUT_WR));
	MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, b));
	MUST(write(b[1], "rest", 4));
	close(b[1]);
}
static void check(void)
{
	char got[10];
	CHECK(read(a[1], got, 10) == 4 && !memcmp(got, "last", 4));
	SAME(read(a[1], got, 10), 0);
	CHECK(write(a[0], "x", 1) == -1 && errno == EPIPE);
	CHECK(write(a[1], "back", 4) == 4 && read(a[0], got, 10) == 4);
	CHECK(read(b[0], got, 10) == 4 && !memcmp(got, "rest", 4));
	SAME(read(b[0], got, 10), 0);
	CHECK(write(b[0], "x", 1) == -1 && errno == EPIPE);
}

/* A connected pair of UNIX stream sockets with data on its way both ways.
 * expect: exact
 * live: no: procfs does not say what a socket is connected to */
#include "state.h"
static int fds[2];
static void make(void)
{
	MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, fds));
	MUST(write(fds[0], "one", 3));
	MUST(write(fds[0], "two", 3));
	MUST(write(fds[1], "back", 4));
	char c;
	MUST(read(fds[1], &c, 1));
}
static void check(void)
{
	char got[20];
	CHECK(read(fds[1], got, sizeof got) == 5 && !memcmp(got, "netwo", 5));
	CHECK(read(fds[0], got, sizeof got) == 4 && !memcmp(got, "back", 4));
	CHECK(recv(fds[0], got, 1, MSG_DONTWAIT) == -1 && errno == EAGAIN);
	CHECK(write(fds[1], "more", 4) == 4);
	CHECK(read(fds[0], got, sizeof got) == 4 && !memcmp(got, "more", 4));
	close(fds[0]);
	SAME(read(fds[1], got, 1), 0);
}

/* UNIX datagram and seqpacket pairs: messages keep their bounds.
 * expect: exact
 * live: no: procfs does not say what a socket is connected to */
#include "state.h"
static int pairs[2][2];
static void make(void)
{
	MUST(socketpair(AF_UNIX, SOCK_DGRAM, 0, pairs[0]));
	MUST(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK, 0, pairs[1]));
	for (int i = 0; i < 2; i++) {
		MUST(send(pairs[i][0], "one", 3, 0));
		MUST(send(pairs[i][0], "", 0, 0));
		MUST(send(pairs[i][0], "three", 5, 0));
	}
}
static void check(void)
{
	char got[20];
	for (int i = 0; i < 2; i++) {
		CHECK(recv(pairs[i][1], got, 20, 0) == 3 && !memcmp(got, "one", 3));
		SAME(recv(pairs[i][1], got, 20, 0), 0);
		CHECK(recv(pairs[i][1], got, 2, MSG_TRUNC) == 5 && !memcmp(got, "th", 2));
		CHECK(recv(pairs[i][1], got, 20, MSG_DONTWAIT) == -1 && errno == EAGAIN);
	}
	CHECK(fcntl(pairs[1][0], F_GETFL) & O_NONBLOCK);
	CHECK(!(fcntl(pairs[0][0], F_GETFL) & O_NONBLOCK));
}

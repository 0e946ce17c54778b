/* A thread in sendto(2) of a datagram whose receiver's queue is full.
 * expect: exact
 * live: no: procfs does not say what a socket is connected to */
#include "call.h"
static struct caller c;
static int pair[2], queued;
static char packet[5000] = "first";
static long call(void) { return send(pair[0], "last", 5, 0); }
static void make(void)
{
	MUST(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair));
	while (send(pair[0], packet, sizeof packet, MSG_DONTWAIT) > 0)
		queued++;
	begin(&c, call, SYS_sendto);
}
static void check(void)
{
	char got[6000];
	still_in(&c);
	for (int i = 0; i < queued; i++)
		CHECK(recv(pair[1], got, sizeof got, 0) == sizeof packet && !strcmp(got, "first"));
	back_with(&c, 5, 0);
	CHECK(recv(pair[1], got, sizeof got, 0) == 5 && !strcmp(got, "last"));
	CHECK(recv(pair[1], got, sizeof got, MSG_DONTWAIT) == -1 && errno == EAGAIN);
}

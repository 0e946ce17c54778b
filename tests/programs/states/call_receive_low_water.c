/* A thread in read(2) of a TCP connection that gives no less than 5000 bytes (SO_RCVLOWAT),
 * of which some have come: it returns with these, as if a signal had come.
 * expect: reconstructed low-water mark
 * live: no: procfs does not say */
#include "stream.h"
static struct caller c;
static int tcp[2];
static unsigned char got[9000];
static long call(void) { return read(tcp[0], got, 9000); }
static void make(void)
{
	int low = 5000;
	stream_begin();
	tcp_pair(AF_INET, 7734, tcp);
	MUST(setsockopt(tcp[0], SOL_SOCKET, SO_RCVLOWAT, &low, sizeof low));
	/* What comes later it is not woken for. */
	MUST(write(tcp[1], stream_out, 2500));
	begin(&c, call, SYS_read);
	settle();
}
static void check(void)
{
	back_with(&c, 2500, 0);
	CHECK(!memcmp(got, stream_out, 2500));
	int low = 0;
	socklen_t len = sizeof low;
	CHECK(getsockopt(tcp[0], SOL_SOCKET, SO_RCVLOWAT, &low, &len) == 0);
	SAME(low, 5000);
	/* A rest below the mark, however the bytes come, is nothing to poll for. */
	low = 1;
	CHECK(setsockopt(tcp[0], SOL_SOCKET, SO_RCVLOWAT, &low, sizeof low) == 0);
	CHECK(write(tcp[1], stream_out + 2500, 6500) == 6500);
	CHECK(read_all(tcp[0], got, 6500) && !memcmp(got, stream_out + 2500, 6500));
}

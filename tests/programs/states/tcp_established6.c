/* A TCP connection over IPv6 with all of its buffers full in one direction: received,
 * under way, and not sent yet.
 * expect: exact
 */
#include "tcp.h"
#define MOST (24L << 20)
static int pair[2];
static long written;
static char byte_of(long i)
{
	return (unsigned long)i * 0x9e3779b97f4a7c15UL >> 40;
}
static void make(void)
{
	char bytes[4096];
	tcp_pair(AF_INET6, 7712, pair);
	MUST(fcntl(pair[0], F_SETFL, O_NONBLOCK));
	/* Until nothing more can be written for a while. */
	for (int quiet = 0; quiet < 10 && written < MOST;) {
		for (int i = 0; i < 4096; i++)
			bytes[i] = byte_of(written + i);
		ssize_t sent = write(pair[0], bytes, sizeof bytes);
		if (sent > 0) {
			written += sent;
			continue;
		}
		quiet++;
		rest(0.05);
	}
}
static void check(void)
{
	char got[4096];
	long read = 0;
	CHECK(written > 100000);
	while (read < written) {
		long some = written - read < 4096 ? written - read : 4096;
		if (!read_all(pair[1], got, some))
			FAIL("nothing behind %ld of %ld (errno %d)", read, written, errno);
		for (long i = 0; i < some; i++)
			if (got[i] != byte_of(read + i))
				FAIL("byte %ld of %ld", read + i, written);
		read += some;
	}
	CHECK(recv(pair[1], got, 1, MSG_DONTWAIT) == -1 && errno == EAGAIN);
	CHECK(fcntl(pair[0], F_SETFL, 0) == 0);
	CHECK(talks(pair[0], pair[1]));
}

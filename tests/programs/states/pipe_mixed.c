/* A pipe that packets and a stream were written to, by two open files of one end.
 * expect: exact
 * live: no: the packets' bounds cannot be seen from outside */
#include "state.h"
static int fds[2], stream;
static void make(void)
{
	char path[40];
	MUST(pipe2(fds, O_DIRECT));
	snprintf(path, sizeof path, "/proc/self/fd/%d", fds[1]);
	stream = MUST(open(path, O_WRONLY));
	MUST(write(fds[1], "packet", 6));
	MUST(write(stream, "str", 3));
	MUST(write(stream, "eam", 3));
}
static void check(void)
{
	char got[20];
	SAME(fcntl(fds[1], F_GETFL) & O_DIRECT, O_DIRECT);
	SAME(fcntl(stream, F_GETFL) & O_DIRECT, 0);
	CHECK(read(fds[0], got, 20) == 6 && !memcmp(got, "packet", 6));
	CHECK(read(fds[0], got, 20) == 6 && !memcmp(got, "stream", 6));
}

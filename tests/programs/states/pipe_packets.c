/* A pipe that keeps packets apart (O_DIRECT).
 * expect: exact
 * live: no: the packets' bounds cannot be seen from outside */
#include "state.h"
static int fds[2];
static void make(void)
{
	MUST(pipe2(fds, O_DIRECT));
	MUST(write(fds[1], "one", 3));
	MUST(write(fds[1], "three", 5));
	MUST(write(fds[1], "x", 1));
}
static void check(void)
{
	char got[20];
	SAME(fcntl(fds[1], F_GETFL) & O_DIRECT, O_DIRECT);
	CHECK(read(fds[0], got, 20) == 3 && !memcmp(got, "one", 3));
	CHECK(read(fds[0], got, 2) == 2 && !memcmp(got, "th", 2));
	CHECK(read(fds[0], got, 20) == 1 && got[0] == 'x');
	CHECK(write(fds[1], "ab", 2) == 2 && write(fds[1], "c", 1) == 1);
	CHECK(read(fds[0], got, 20) == 2);
}

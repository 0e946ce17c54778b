/* A pipe with what was written and not read, its size, and both ends' flags.
 * expect: exact */
#include "state.h"
static int fds[2];
static void make(void)
{
	char content[3 * PAGE];
	MUST(pipe2(fds, O_NONBLOCK));
	MUST(fcntl(fds[0], F_SETFL, 0));
	MUST(fcntl(fds[0], F_SETPIPE_SZ, 8 * PAGE));
	fill(content, sizeof content, 1);
	MUST(write(fds[1], content, 1000));
	MUST(write(fds[1], content + 1000, sizeof content - 1000));
	MUST(read(fds[0], content, 8));
}
static void check(void)
{
	char content[3 * PAGE], whole[3 * PAGE];
	SAME(fcntl(fds[1], F_GETPIPE_SZ), 8 * PAGE);
	SAME(fcntl(fds[0], F_GETFL), O_RDONLY);
	SAME(fcntl(fds[1], F_GETFL), O_WRONLY | O_NONBLOCK);
	size_t got = 0;
	while (got < sizeof content - 8) {
		long n = read(fds[0], content + got, sizeof content - 8 - got);
		CHECK(n > 0);
		got += n;
	}
	fill(whole, sizeof whole, 1);
	CHECK(!memcmp(content, whole + 8, sizeof whole - 8));
	close(fds[1]);
	SAME(read(fds[0], content, 1), 0);
}

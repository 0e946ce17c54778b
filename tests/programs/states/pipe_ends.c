/* Pipes one end of which is closed.
 * expect: lost the writer of pipe
 * may: the reader of pipe */
#include "state.h"
static int reader, writer;
static void make(void)
{
	int fds[2];
	MUST(pipe(fds));
	MUST(write(fds[1], "rest", 4));
	close(fds[1]);
	reader = fds[0];
	MUST(pipe(fds));
	close(fds[0]);
	writer = fds[1];
	signal(SIGPIPE, SIG_IGN);
}
static void check(void)
{
	char got[10];
	CHECK(read(reader, got, 10) == 4 && !memcmp(got, "rest", 4));
	SAME(read(reader, got, 10), 0);
	CHECK(write(writer, "x", 1) == -1 && errno == EPIPE);
}

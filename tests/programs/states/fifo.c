/* A named pipe, open both ways and for reading, with content.
 * expect: exact
 * live: no: the test takes no named pipes */
#include "state.h"
static int both, reader;
static void make(void)
{
	MUST(mkfifo("fifo", 0600));
	both = MUST(open("fifo", O_RDWR));
	reader = MUST(open("fifo", O_RDONLY | O_NONBLOCK));
	MUST(write(both, "in the fifo", 11));
}
static void check(void)
{
	char got[20];
	CHECK(read(reader, got, 20) == 11 && !memcmp(got, "in the fifo", 11));
	CHECK(read(reader, got, 20) == -1 && errno == EAGAIN);
	int writer = open("fifo", O_WRONLY | O_NONBLOCK);
	CHECK(writer >= 0 && write(writer, "x", 1) == 1);
	CHECK(read(both, got, 20) == 1);
	close(writer);
	close(both);
	SAME(read(reader, got, 1), 0);
}

/* A thread in write(2) of one byte to a full pipe.
 * expect: exact */
#include "call.h"
static struct caller c;
static int fds[2];
static long call(void) { return write(fds[1], "Z", 1); }
static void make(void)
{
	char page[PAGE] = "a";
	MUST(pipe(fds));
	long size = MUST(fcntl(fds[1], F_SETPIPE_SZ, 4 * PAGE));
	for (long i = 0; i < size; i += PAGE)
		MUST(write(fds[1], page, PAGE));
	begin(&c, call, SYS_write);
}
static void check(void)
{
	char page[PAGE];
	still_in(&c);
	CHECK(read(fds[0], page, PAGE) == PAGE && page[0] == 'a');
	back_with(&c, 1, 0);
	for (int i = 0; i < 3; i++)
		CHECK(read(fds[0], page, PAGE) == PAGE && page[0] == 'a');
	CHECK(read(fds[0], page, PAGE) == 1 && page[0] == 'Z');
}

/* A thread in read(2) on an empty pipe.
 * expect: exact */
#include "call.h"
static struct caller c;
static int fds[2];
static char got[10];
static long call(void) { return read(fds[0], got, sizeof got); }
static void make(void)
{
	MUST(pipe(fds));
	begin(&c, call, SYS_read);
}
static void check(void)
{
	still_in(&c);
	CHECK(write(fds[1], "hello", 5) == 5);
	back_with(&c, 5, 0);
	CHECK(!memcmp(got, "hello", 5));
}

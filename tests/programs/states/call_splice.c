/* A thread in splice(2) from an empty pipe to another.
 * expect: exact */
#include "call.h"
static struct caller c;
static int from[2], to[2];
static long call(void) { return splice(from[0], NULL, to[1], NULL, 100, 0); }
static void make(void)
{
	MUST(pipe(from));
	MUST(pipe(to));
	begin(&c, call, SYS_splice);
}
static void check(void)
{
	char got[10];
	still_in(&c);
	CHECK(write(from[1], "hello", 5) == 5);
	back_with(&c, 5, 0);
	CHECK(read(to[0], got, 10) == 5 && !memcmp(got, "hello", 5));
}

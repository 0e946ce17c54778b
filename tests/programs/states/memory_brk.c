/* The heap below the break, which can be moved on from where it was.
 * expect: exact */
#include "state.h"
static char *p, *end;
static void make(void)
{
	p = sbrk(300 * PAGE);
	MUST(p == (void *)-1 ? -1 : 0);
	fill(p, 300 * PAGE, 1);
	end = sbrk(0);
}
static void check(void)
{
	CHECK(filled(p, 300 * PAGE, 1));
	CHECK(sbrk(0) == end);
	CHECK(sbrk(100 * PAGE) == end);
	fill(end, 100 * PAGE, 2);
	CHECK(brk(p) == 0 && sbrk(0) == p);
	char *q = malloc(100000);
	CHECK(q != NULL);
	fill(q, 100000, 3);
}

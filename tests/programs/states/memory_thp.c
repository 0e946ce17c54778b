/* Transparent huge pages where they were asked for, and none where they were not wanted.
 * expect: exact
 * live: no: not all of it is taken by the test */
#include "look.h"
#define SIZE (8L << 20)
static char *p, *q;
static void make(void)
{
	p = map(SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	q = map(16 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (madvise(p, SIZE, MADV_HUGEPAGE))
		ABSENT("no transparent huge pages");
	MUST(madvise(q, 16 * PAGE, MADV_NOHUGEPAGE));
	fill(p, SIZE, 1);
	fill(q, 16 * PAGE, 2);
	MUST(prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0));
}
static void check(void)
{
	CHECK(filled(p, SIZE, 1) && filled(q, 16 * PAGE, 2));
	CHECK(has_flag(p, "hg") && has_flag(q, "nh"));
	SAME(prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0), 1);
}

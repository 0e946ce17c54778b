/* mlock(2), mlock2(2) of what is touched later, and mlockall(2) of what is to come.
 * expect: exact
 * live: no: procfs does not tell what is locked when it is touched */
#include "look.h"
static char *a, *b;
static void make(void)
{
	a = map(8 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	b = map(8 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	fill(a, 4 * PAGE, 1);
	fill(b, PAGE, 2);
	MUST(mlock(a, 6 * PAGE));
	MUST(mlock2(b, 8 * PAGE, MLOCK_ONFAULT));
	MUST(mlockall(MCL_FUTURE));
}
static void check(void)
{
	unsigned char there[8];
	CHECK(filled(a, 4 * PAGE, 1) && filled(b, PAGE, 2));
	CHECK(has_flag(a, "lo") && !has_flag(a + 7 * PAGE, "lo"));
	CHECK(has_flag(b, "lo"));
	CHECK(mincore(b, 8 * PAGE, there) == 0 && there[0] == 1 && there[6] == 0);
	CHECK(mincore(a, 8 * PAGE, there) == 0 && there[5] == 1 && there[7] == 0);
	char *c = map(2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(has_flag(c, "lo"));
	CHECK(mincore(c, 2 * PAGE, there) == 0 && there[0] == 1);
}

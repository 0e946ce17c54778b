/* Private anonymous memory: pages written to, read, and never touched.
 * expect: exact */
#include "state.h"
static char *p;
static void make(void)
{
	p = map(64 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	fill(p + PAGE, 40 * PAGE, 1);
	MUST(p[50 * PAGE] == 0 ? 0 : -1);
}
static void check(void)
{
	CHECK(filled(p + PAGE, 40 * PAGE, 1));
	for (long i = 41 * PAGE; i < 64 * PAGE; i++)
		CHECK(p[i] == 0);
	fill(p, 64 * PAGE, 2);
	CHECK(p[0] != 0 || p[1] != 0);
}

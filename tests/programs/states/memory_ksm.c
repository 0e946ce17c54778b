/* Equal pages that the kernel has merged: each is its own again when written to.
 * expect: exact */
#include "look.h"
#define N 64
static char *p;
static void make(void)
{
	p = map(N * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	for (int i = 0; i < N; i++)
		fill(p + i * PAGE, PAGE, 5);
	if (madvise(p, N * PAGE, MADV_MERGEABLE))
		ABSENT("no KSM");
	rest(1);
}
static void check(void)
{
	CHECK(has_flag(p, "mg"));
	fill(p + 3 * PAGE, PAGE, 6);
	for (int i = 0; i < N; i++)
		CHECK(filled(p + i * PAGE, PAGE, i == 3 ? 6 : 5));
}

/* 64 GiB without reservation, of which three pages are there.
 * expect: exact
 * live: no: procfs would have to be asked of 16 million pages */
#include "state.h"
#define SIZE (64L << 30)
static char *p;
static void make(void)
{
	p = map(SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	fill(p, PAGE, 1);
	fill(p + SIZE / 2, PAGE, 2);
	fill(p + SIZE - PAGE, PAGE, 3);
}
static void check(void)
{
	CHECK(filled(p, PAGE, 1) && filled(p + SIZE / 2, PAGE, 2) && filled(p + SIZE - PAGE, PAGE, 3));
	SAME(p[PAGE], 0);
	p[SIZE / 4] = 1;
}

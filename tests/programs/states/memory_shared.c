/* Anonymous memory that children would share.
 * expect: exact */
#include "state.h"
static char *p;
static void make(void)
{
	p = map(16 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	fill(p + PAGE, 9 * PAGE, 1);
}
static void check(void)
{
	CHECK(filled(p + PAGE, 9 * PAGE, 1));
	CHECK(p[0] == 0 && p[15 * PAGE] == 0);
	p[12 * PAGE] = 7;
	if (fork() == 0) {
		p[12 * PAGE]++;
		_exit(0);
	}
	rest(0.5);
	SAME(p[12 * PAGE], 8);
}

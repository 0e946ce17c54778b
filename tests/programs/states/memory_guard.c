/* Guard pages between written ones: many small mappings of three protections.
 * expect: exact */
#include "state.h"
#define N 200
static char *p;
static void make(void)
{
	p = map(3 * N * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	for (long i = 0; i < N; i++) {
		MUST(mprotect(p + 3 * i * PAGE, PAGE, PROT_READ | PROT_WRITE));
		fill(p + 3 * i * PAGE, PAGE, i);
		MUST(mprotect(p + (3 * i + 1) * PAGE, PAGE, PROT_READ));
	}
}
static void check(void)
{
	unsigned char here;
	int fds[2];
	CHECK(pipe(fds) == 0);
	for (long i = 0; i < N; i++) {
		CHECK(filled(p + 3 * i * PAGE, PAGE, i));
		CHECK(mincore(p + (3 * i + 1) * PAGE, PAGE, &here) == 0);
		CHECK(write(fds[1], p + (3 * i + 2) * PAGE, 1) == -1 && errno == EFAULT);
	}
}

/* Protection keys: which are allocated, what they guard, and the thread's rights.
 * expect: exact
 * live: no: procfs does not say which keys are allocated */
#include "look.h"
#include <setjmp.h>
static char *p;
static int key;
static sigjmp_buf back;
static void fault(int signal) { siglongjmp(back, signal); }
static void make(void)
{
	key = pkey_alloc(0, 0);
	if (key < 0)
		ABSENT("no protection keys");
	signal(SIGSEGV, fault);
	p = map(4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	fill(p, 4 * PAGE, 1);
	MUST(pkey_mprotect(p, 2 * PAGE, PROT_READ | PROT_WRITE, key));
	MUST(pkey_set(key, PKEY_DISABLE_WRITE));
}
static void check(void)
{
	SAME(pkey_get(key), PKEY_DISABLE_WRITE);
	CHECK(filled(p, 4 * PAGE, 1));
	p[3 * PAGE] = 1;
	if (sigsetjmp(back, 1) == 0) {
		*(volatile char *)p = 1;
		FAIL("the key does not guard");
	}
	CHECK(pkey_set(key, 0) == 0);
	p[0] = 1;
	int other = pkey_alloc(0, 0);
	CHECK(other > key);
	CHECK(pkey_free(key) == 0);
}

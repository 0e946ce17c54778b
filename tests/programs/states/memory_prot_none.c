/* Memory that was written to and may not be looked at any more, as it was.
 * expect: exact */
#include "state.h"
#include <setjmp.h>
static char *p;
static sigjmp_buf back;
static void fault(int signal) { siglongjmp(back, signal); }
static void make(void)
{
	signal(SIGSEGV, fault);
	p = map(8 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	fill(p, 8 * PAGE, 1);
	MUST(mprotect(p, 4 * PAGE, PROT_NONE));
	MUST(mprotect(p + 4 * PAGE, 2 * PAGE, PROT_READ));
}
static void check(void)
{
	if (sigsetjmp(back, 1) == 0) {
		*(volatile char *)p;
		FAIL("PROT_NONE can be read");
	}
	if (sigsetjmp(back, 1) == 0) {
		((volatile char *)p)[5 * PAGE] = 1;
		FAIL("PROT_READ can be written to");
	}
	CHECK(mprotect(p, 6 * PAGE, PROT_READ) == 0);
	CHECK(filled(p, 8 * PAGE, 1));
}

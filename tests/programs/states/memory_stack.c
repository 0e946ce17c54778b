/* Stacks: the first thread's, deep and still growing, and a mapping that grows down.
 * expect: exact */
#include "look.h"
#define DEEP (600L << 10)
static char *p;
static volatile char *deep;
static void touch(long size)
{
	volatile char room[size];
	for (long i = 0; i < size; i += PAGE)
		room[i] = (char)(i / PAGE);
	deep = room;
}
static void make(void)
{
	touch(DEEP);
	p = map(400 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	MUST(munmap(p, 400 * PAGE));
	p = mmap(p + 300 * PAGE, 8 * PAGE, PROT_READ | PROT_WRITE,
		 MAP_PRIVATE | MAP_ANONYMOUS | MAP_GROWSDOWN | MAP_FIXED, -1, 0);
	MUST(p == MAP_FAILED ? -1 : 0);
	fill(p, 8 * PAGE, 1);
}
static void check(void)
{
	/* What is near the top has been called over since. */
	for (long i = PAGE; i < DEEP - 40 * PAGE; i += PAGE)
		SAME(deep[i], (char)(i / PAGE));
	touch(4 * DEEP);
	CHECK(filled(p, 8 * PAGE, 1));
	CHECK(has_flag(p, "gd"));
	p[-PAGE] = 5;
	p[-2 * PAGE] = 6;
}

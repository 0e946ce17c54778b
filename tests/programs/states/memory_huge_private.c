/* Private memory in pages of 2 MiB (hugetlb).
 * expect: exact
 * live: no: procfs does not tell hugetlb areas from files */
#include "look.h"
#define SIZE (4L << 20)
static char *p;
static void make(void)
{
	p = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0);
	if (p == MAP_FAILED)
		ABSENT("no huge pages are free");
	fill(p, SIZE, 1);
}
static void check(void)
{
	CHECK(filled(p, SIZE, 1));
	CHECK(has_flag(p, "ht"));
	fill(p, SIZE, 2);
}

/* Shared memory in pages of 2 MiB: anonymous, and a memfd.
 * expect: exact
 * live: no: procfs does not tell hugetlb areas from files */
#include "look.h"
#include <sys/vfs.h>
#define SIZE (2L << 20)
static char *p, *q;
static int fd;
static void make(void)
{
	p = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0);
	if (p == MAP_FAILED)
		ABSENT("no huge pages are free");
	fd = MUST(memfd_create("huge", MFD_HUGETLB));
	MUST(ftruncate(fd, SIZE));
	q = map(SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	fill(p, SIZE, 1);
	fill(q, SIZE, 2);
}
static void check(void)
{
	struct statfs fs;
	CHECK(filled(p, SIZE, 1) && filled(q, SIZE, 2));
	CHECK(has_flag(p, "ht") && has_flag(q, "ht"));
	CHECK(fstatfs(fd, &fs) == 0 && fs.f_bsize == SIZE);
}

/* Memory that was moved and made larger, anonymous and of a file.
 * expect: exact */
#include "state.h"
static char *p, *q;
static void make(void)
{
	p = map(4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	fill(p, 4 * PAGE, 1);
	char *to = map(64 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	p = mremap(p, 4 * PAGE, 16 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, to + 8 * PAGE);
	MUST(p == MAP_FAILED ? -1 : 0);
	int fd = MUST(open("file", O_RDWR | O_CREAT, 0600));
	MUST(ftruncate(fd, 32 * PAGE));
	q = map(4 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 8 * PAGE);
	fill(q, 4 * PAGE, 2);
	q = mremap(q, 4 * PAGE, 8 * PAGE, MREMAP_MAYMOVE);
	MUST(q == MAP_FAILED ? -1 : 0);
	close(fd);
}
static void check(void)
{
	CHECK(filled(p, 4 * PAGE, 1) && p[5 * PAGE] == 0);
	CHECK(filled(q, 4 * PAGE, 2) && q[5 * PAGE] == 0);
	char copy[4 * PAGE];
	int fd = open("file", O_RDONLY);
	CHECK(pread(fd, copy, sizeof copy, 8 * PAGE) == sizeof copy);
	CHECK(filled(copy, sizeof copy, 2));
}

/* A shared mapping of a file, written to and never synced.
 * expect: exact */
#include "state.h"
static char *p;
static void make(void)
{
	int fd = MUST(open("file", O_RDWR | O_CREAT, 0600));
	MUST(ftruncate(fd, 16 * PAGE));
	p = map(16 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	close(fd);
	fill(p, 12 * PAGE, 1);
}
static void check(void)
{
	char content[12 * PAGE];
	CHECK(filled(p, 12 * PAGE, 1) && p[13 * PAGE] == 0);
	int fd = open("file", O_RDWR);
	CHECK(read(fd, content, sizeof content) == sizeof content);
	CHECK(filled(content, sizeof content, 1));
	CHECK(pwrite(fd, "x", 1, 14 * PAGE) == 1);
	SAME(p[14 * PAGE], 'x');
}

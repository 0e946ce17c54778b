/* A private mapping of a file: pages written to, and pages that are the file's.
 * expect: exact */
#include "state.h"
static char *p;
static void make(void)
{
	char content[16 * PAGE];
	int fd = MUST(open("file", O_RDWR | O_CREAT, 0600));
	fill(content, sizeof content, 1);
	MUST(write(fd, content, sizeof content));
	p = map(sizeof content, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
	close(fd);
	fill(p + 4 * PAGE, 4 * PAGE, 2);
}
static void check(void)
{
	char content[16 * PAGE];
	int fd = open("file", O_RDONLY);
	CHECK(read(fd, content, sizeof content) == sizeof content);
	CHECK(filled(content, sizeof content, 1));
	CHECK(filled(p + 4 * PAGE, 4 * PAGE, 2));
	memcpy(p + 4 * PAGE, content + 4 * PAGE, 4 * PAGE);
	CHECK(filled(p, 16 * PAGE, 1));
}

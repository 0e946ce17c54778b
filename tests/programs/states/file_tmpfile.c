/* A file that never had a name (O_TMPFILE).
 * expect: reconstructed deleted */
#include "state.h"
static int fd;
static void make(void)
{
	char content[2 * PAGE];
	fd = open(".", O_RDWR | O_TMPFILE, 0640);
	if (fd < 0)
		ABSENT("no O_TMPFILE on this file system");
	fill(content, sizeof content, 1);
	MUST(write(fd, content, sizeof content));
}
static void check(void)
{
	char content[2 * PAGE];
	SAME(lseek(fd, 0, SEEK_CUR), 2 * PAGE);
	CHECK(pread(fd, content, sizeof content, 0) == sizeof content);
	CHECK(filled(content, sizeof content, 1));
}

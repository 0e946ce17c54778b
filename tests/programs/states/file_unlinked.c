/* An open file that was deleted, with content and position.
 * expect: reconstructed deleted */
#include "state.h"
static int fd;
static char content[3 * PAGE];
static void make(void)
{
	fd = MUST(open("file", O_RDWR | O_CREAT, 0600));
	fill(content, sizeof content, 1);
	MUST(write(fd, content, sizeof content));
	MUST(lseek(fd, PAGE, SEEK_SET));
	MUST(unlink("file"));
}
static void check(void)
{
	char got[2 * PAGE];
	CHECK(read(fd, got, sizeof got) == sizeof got);
	CHECK(!memcmp(got, content + PAGE, sizeof got));
	CHECK(write(fd, "x", 1) == 1);
}

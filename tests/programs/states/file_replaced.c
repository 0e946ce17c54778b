/* A file that is open, and another one of its name by now.
 * expect: reconstructed deleted */
#include "state.h"
static int fd;
static void make(void)
{
	fd = MUST(open("file", O_RDWR | O_CREAT, 0600));
	MUST(write(fd, "the old one", 11));
	int other = MUST(open("new", O_RDWR | O_CREAT, 0600));
	MUST(write(other, "the new one", 11));
	close(other);
	MUST(rename("new", "file"));
}
static void check(void)
{
	char got[20];
	CHECK(pread(fd, got, 20, 0) == 11 && !memcmp(got, "the old one", 11));
	int other = open("file", O_RDONLY);
	CHECK(read(other, got, 20) == 11 && !memcmp(got, "the new one", 11));
}

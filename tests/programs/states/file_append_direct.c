/* Files opened past the page cache (O_DIRECT), for synchronous writes, by path alone (O_PATH).
 * expect: exact */
#include "state.h"
static int direct, path, dir;
static char page[2 * PAGE] __attribute__((aligned(4096)));
static void make(void)
{
	direct = MUST(open("file", O_RDWR | O_CREAT | O_DIRECT | O_DSYNC, 0600));
	fill(page, PAGE, 1);
	MUST(write(direct, page, PAGE));
	path = MUST(open("file", O_PATH | O_CLOEXEC));
	dir = MUST(open(".", O_RDONLY | O_DIRECTORY));
}
static void check(void)
{
	struct stat a, b;
	SAME(fcntl(direct, F_GETFL) & (O_DIRECT | O_SYNC | O_ACCMODE), O_DIRECT | O_DSYNC | O_RDWR);
	CHECK(write(direct, page + 1, PAGE) == -1 && errno == EINVAL);
	CHECK(write(direct, page, PAGE) == PAGE);
	SAME(lseek(direct, 0, SEEK_CUR), 2 * PAGE);
	CHECK(read(path, page, 1) == -1 && errno == EBADF);
	CHECK(fcntl(path, F_GETFL) & O_PATH);
	CHECK(fstat(path, &a) == 0 && fstat(direct, &b) == 0 && a.st_ino == b.st_ino);
	CHECK(openat(dir, "file", O_RDONLY) >= 0);
}

/* A memfd: content, position, name, and a mapping of the same memory.
 * expect: exact */
#include "state.h"
static int fd;
static char *p;
static void make(void)
{
	char content[5 * PAGE];
	fill(content, sizeof content, 1);
	fd = MUST(memfd_create("of the test", MFD_CLOEXEC));
	MUST(write(fd, content, sizeof content));
	MUST(lseek(fd, 1234, SEEK_SET));
	p = map(5 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	fill(p + PAGE, PAGE, 2);
}
static void check(void)
{
	char content[PAGE], link[100] = "", path[40];
	SAME(lseek(fd, 0, SEEK_CUR), 1234);
	CHECK(pread(fd, content, PAGE, PAGE) == PAGE && filled(content, PAGE, 2));
	CHECK(pwrite(fd, "x", 1, 3 * PAGE) == 1);
	SAME(p[3 * PAGE], 'x');
	snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
	CHECK(readlink(path, link, sizeof link - 1) > 0);
	CHECK(!strcmp(link, "/memfd:of the test (deleted)"));
	SAME(fcntl(fd, F_GETFD), FD_CLOEXEC);
	SAME(fcntl(fd, F_GET_SEALS), F_SEAL_SEAL);
}

/* Regular files: position, flags, O_APPEND, descriptors that share a position, FD_CLOEXEC.
 * expect: exact */
#include "state.h"
static int a, b, c, d;
static void make(void)
{
	a = MUST(open("file", O_RDWR | O_CREAT, 0600));
	MUST(write(a, "0123456789", 10));
	MUST(lseek(a, 3, SEEK_SET));
	b = MUST(dup(a));
	c = MUST(fcntl(a, F_DUPFD_CLOEXEC, 150));
	d = MUST(open("file", O_WRONLY | O_APPEND | O_SYNC | O_NONBLOCK));
}
static void check(void)
{
	char got[4];
	CHECK(read(b, got, 2) == 2 && !memcmp(got, "34", 2));
	SAME(lseek(a, 0, SEEK_CUR), 5);
	CHECK(read(c, got, 1) == 1 && got[0] == '5');
	SAME(lseek(b, 0, SEEK_CUR), 6);
	SAME(fcntl(c, F_GETFD), FD_CLOEXEC);
	SAME(fcntl(b, F_GETFD), 0);
	SAME(fcntl(a, F_GETFL) & ~0100000, O_RDWR);
	SAME(fcntl(d, F_GETFL) & ~0100000, O_WRONLY | O_APPEND | O_SYNC | O_NONBLOCK);
	CHECK(write(d, "x", 1) == 1);
	CHECK(pread(a, got, 1, 10) == 1 && got[0] == 'x');
	SAME(lseek(a, 0, SEEK_CUR), 6);
}

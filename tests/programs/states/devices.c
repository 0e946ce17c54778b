/* /dev/null, zero, full, urandom, and a file of procfs half-way through.
 * expect: exact */
#include "state.h"
static int null, zero, full, random_, proc;
static void make(void)
{
	char got[20];
	null = MUST(open("/dev/null", O_RDWR));
	zero = MUST(open("/dev/zero", O_RDONLY));
	full = MUST(open("/dev/full", O_WRONLY | O_NONBLOCK));
	random_ = MUST(open("/dev/urandom", O_RDONLY));
	proc = MUST(open("/proc/version", O_RDONLY));
	MUST(read(proc, got, 6));
}
static void check(void)
{
	char a[20] = { 1 }, b[20] = { 0 };
	SAME(read(null, a, 20), 0);
	SAME(write(null, a, 20), 20);
	CHECK(read(zero, a, 20) == 20 && !memcmp(a, b, 20));
	CHECK(write(full, a, 1) == -1 && errno == ENOSPC);
	CHECK(fcntl(full, F_GETFL) & O_NONBLOCK);
	CHECK(read(random_, a, 20) == 20 && read(random_, b, 20) == 20 && memcmp(a, b, 20));
	CHECK(read(proc, a, 8) == 8 && !memcmp(a, "version ", 8));
}

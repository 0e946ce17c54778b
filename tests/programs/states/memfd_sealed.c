/* A memfd that may neither be written to nor change its size.
 * expect: exact */
#include "state.h"
#define SEALS (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL)
static int fd;
static void make(void)
{
	char content[3 * PAGE];
	fill(content, sizeof content, 1);
	fd = MUST(memfd_create("sealed", MFD_ALLOW_SEALING));
	MUST(write(fd, content, sizeof content));
	MUST(fcntl(fd, F_ADD_SEALS, SEALS));
}
static void check(void)
{
	char content[3 * PAGE];
	SAME(fcntl(fd, F_GET_SEALS), SEALS);
	CHECK(pread(fd, content, sizeof content, 0) == sizeof content && filled(content, sizeof content, 1));
	CHECK(write(fd, "x", 1) == -1 && errno == EPERM);
	CHECK(ftruncate(fd, 1) == -1 && errno == EPERM);
}

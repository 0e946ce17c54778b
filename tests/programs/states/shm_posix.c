/* POSIX shared memory by its name, mapped.
 * expect: reconstructed lived in memory */
#include "state.h"
static int fd;
static char *p;
static void make(void)
{
	fd = MUST(shm_open("/vmrestore-state", O_RDWR | O_CREAT | O_EXCL, 0600));
	MUST(ftruncate(fd, 10 * PAGE));
	p = map(10 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	fill(p + 2 * PAGE, 6 * PAGE, 1);
}
static void check(void)
{
	CHECK(filled(p + 2 * PAGE, 6 * PAGE, 1) && p[0] == 0);
	int other = shm_open("/vmrestore-state", O_RDWR, 0);
	CHECK(other >= 0);
	CHECK(pwrite(other, "x", 1, 5) == 1);
	SAME(p[5], 'x');
	CHECK(shm_unlink("/vmrestore-state") == 0);
}

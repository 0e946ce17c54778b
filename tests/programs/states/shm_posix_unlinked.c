/* POSIX shared memory whose name was unlinked while it is mapped and open.
 * expect: reconstructed lived in memory */
#include "state.h"
static int fd;
static char *p;
static void make(void)
{
	fd = MUST(shm_open("/vmrestore-unlinked", O_RDWR | O_CREAT | O_EXCL, 0600));
	MUST(ftruncate(fd, 10 * PAGE));
	p = map(10 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	MUST(shm_unlink("/vmrestore-unlinked"));
	fill(p + 2 * PAGE, 6 * PAGE, 1);
}
static void check(void)
{
	CHECK(filled(p + 2 * PAGE, 6 * PAGE, 1) && p[0] == 0);
	CHECK(pwrite(fd, "x", 1, 5) == 1);
	SAME(p[5], 'x');
}

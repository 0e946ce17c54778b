/* The master of a pseudo-terminal whose slave was closed: what it had written is read, then the end.
 * expect: exact
 * live: no: what is buffered cannot be seen from outside */
#include "state.h"
static int master;
static void make(void)
{
	master = MUST(posix_openpt(O_RDWR | O_NOCTTY));
	MUST(grantpt(master));
	MUST(unlockpt(master));
	int slave = MUST(open(ptsname(master), O_RDWR | O_NOCTTY));
	MUST(write(slave, "last words\n", 11));
	rest(0.2);
	close(slave);
}
static void check(void)
{
	char got[30];
	SAME(read(master, got, 30), 12);
	CHECK(!memcmp(got, "last words\r\n", 12));
	CHECK(read(master, got, 30) == -1 && errno == EIO);
}

/* The master of a pseudo-terminal whose slave nobody has opened yet, and which is locked.
 * expect: exact
 * live: no: procfs does not say whether it was */
#include "state.h"
static int master;
static void make(void)
{
	master = MUST(posix_openpt(O_RDWR | O_NOCTTY | O_NONBLOCK));
	MUST(grantpt(master));
}
static void check(void)
{
	char got[30];
	CHECK(read(master, got, 30) == -1 && errno == EAGAIN);
	CHECK(open(ptsname(master), O_RDWR | O_NOCTTY) == -1 && errno == EIO);
	CHECK(unlockpt(master) == 0);
	int slave = open(ptsname(master), O_RDWR | O_NOCTTY);
	CHECK(slave >= 0 && write(slave, "x", 1) == 1);
	rest(0.2);
	CHECK(read(master, got, 30) == 1 && got[0] == 'x');
}

/* A pseudo-terminal in line mode, with a whole line and one that is not yet ended, and their echo.
 * expect: exact
 * live: no: what is buffered cannot be seen from outside */
#include "state.h"
#include <termios.h>
static int master, slave;
static void make(void)
{
	master = MUST(posix_openpt(O_RDWR | O_NOCTTY));
	MUST(grantpt(master));
	MUST(unlockpt(master));
	slave = MUST(open(ptsname(master), O_RDWR | O_NOCTTY));
	MUST(write(master, "whole lines\177\nhalf ", 18));
	rest(0.2);
}
static void check(void)
{
	char got[60];
	CHECK(fcntl(slave, F_SETFL, O_NONBLOCK) == 0 && fcntl(master, F_SETFL, O_NONBLOCK) == 0);
	SAME(read(slave, got, 60), 11);
	CHECK(!memcmp(got, "whole line\n", 11));
	CHECK(read(slave, got, 60) == -1 && errno == EAGAIN);
	SAME(read(master, got, 60), 21);
	CHECK(!memcmp(got, "whole lines\b \b\r\nhalf ", 21));
	/* What is not ended can still be changed. */
	CHECK(write(master, "\177line\n", 6) == 6);
	rest(0.2);
	SAME(read(slave, got, 60), 9);
	CHECK(!memcmp(got, "halfline\n", 9));
}

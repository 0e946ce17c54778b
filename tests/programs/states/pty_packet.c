/* Modes of a pseudo-terminal's ends: packets, exclusive use, output that was stopped.
 * expect: exact
 * live: no: procfs does not say them */
#include "state.h"
#include <sys/ioctl.h>
#include <termios.h>
static int master, slave;
static void make(void)
{
	int on = 1;
	master = MUST(posix_openpt(O_RDWR | O_NOCTTY | O_NONBLOCK));
	MUST(grantpt(master));
	MUST(unlockpt(master));
	slave = MUST(open(ptsname(master), O_RDWR | O_NOCTTY | O_NONBLOCK));
	MUST(write(slave, "before", 6));
	rest(0.2);
	MUST(ioctl(slave, TIOCEXCL));
	MUST(tcflow(slave, TCOOFF));
	MUST(ioctl(master, TIOCPKT, &on));
	MUST(write(slave, "x", 1) == -1 && errno == EAGAIN ? 0 : -1);
}
static void check(void)
{
	int on = 0;
	char got[30];
	CHECK(ioctl(slave, TIOCGEXCL, &on) == 0 && on == 1);
	CHECK(ioctl(master, TIOCGPKT, &on) == 0 && on == 1);
	CHECK(write(slave, "x", 1) == -1 && errno == EAGAIN);
	long len = read(master, got, 30);
	CHECK(len == 7 && !memcmp(got, "\0before", 7));
	CHECK(tcflow(slave, TCOON) == 0);
	rest(0.2);
	/* That it goes on is a packet of its own. */
	len = read(master, got, 30);
	CHECK(len == 1 && got[0] & TIOCPKT_START);
	CHECK(write(slave, "x", 1) == 1);
	rest(0.2);
	CHECK(read(master, got, 30) == 2 && got[0] == 0 && got[1] == 'x');
}

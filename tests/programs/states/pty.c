/* A pseudo-terminal of its own: settings, size, and what waits in both directions.
 * expect: exact
 * live: no: what is buffered cannot be seen from outside */
#include "state.h"
#include <sys/ioctl.h>
#include <termios.h>
static int master, slave;
static void make(void)
{
	struct termios t;
	struct winsize size = { 33, 99, 0, 0 };
	master = MUST(posix_openpt(O_RDWR | O_NOCTTY));
	MUST(grantpt(master));
	MUST(unlockpt(master));
	slave = MUST(open(ptsname(master), O_RDWR | O_NOCTTY));
	MUST(tcgetattr(slave, &t));
	cfmakeraw(&t);
	t.c_cc[VMIN] = 3;
	MUST(tcsetattr(slave, TCSANOW, &t));
	MUST(ioctl(master, TIOCSWINSZ, &size));
	MUST(write(master, "to the\0slave\n\4", 14));
	MUST(write(slave, "to the master\n", 14));
	rest(0.2);
}
static void check(void)
{
	struct termios t;
	struct winsize size;
	char got[30];
	CHECK(tcgetattr(slave, &t) == 0 && !(t.c_lflag & (ICANON | ECHO)) && t.c_cc[VMIN] == 3);
	CHECK(ioctl(slave, TIOCGWINSZ, &size) == 0 && size.ws_row == 33 && size.ws_col == 99);
	CHECK(fcntl(slave, F_SETFL, O_NONBLOCK) == 0 && fcntl(master, F_SETFL, O_NONBLOCK) == 0);
	SAME(read(slave, got, 30), 14);
	CHECK(!memcmp(got, "to the\0slave\n\4", 14));
	SAME(read(master, got, 30), 14);
	CHECK(!memcmp(got, "to the master\n", 14));
	CHECK(read(slave, got, 30) == -1 && errno == EAGAIN);
	CHECK(read(master, got, 30) == -1 && errno == EAGAIN);
	CHECK(write(master, "again", 5) == 5);
	rest(0.2);
	CHECK(read(slave, got, 30) == 5 && !memcmp(got, "again", 5));
}

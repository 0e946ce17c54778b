/* A session of its own with a controlling terminal, and its foreground group.
 * expect: exact
 * live: no: procfs does not say which terminal a descriptor stands for */
#include "state.h"
#include <sys/ioctl.h>
#include <termios.h>
static int master, slave;
static volatile int interrupted;
static void handler(int signal) { interrupted = signal; }
static void make(void)
{
	signal(SIGINT, handler);
	setsid();
	master = MUST(posix_openpt(O_RDWR | O_NOCTTY));
	MUST(grantpt(master));
	MUST(unlockpt(master));
	slave = MUST(open(ptsname(master), O_RDWR | O_NOCTTY));
	MUST(ioctl(slave, TIOCSCTTY, 0));
	MUST(tcgetpgrp(slave) == getpid() ? 0 : -1);
}
static void check(void)
{
	SAME(getsid(0), getpid());
	SAME(tcgetsid(slave), getpid());
	SAME(tcgetpgrp(slave), getpid());
	CHECK(open("/dev/tty", O_RDWR) >= 0);
	CHECK(write(master, "\3", 1) == 1);
	rest(0.3);
	SAME(interrupted, SIGINT);
}

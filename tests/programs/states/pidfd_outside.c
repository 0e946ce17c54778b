/* A pidfd of a child that is not restored: it is as of one that has ended.
 * expect: lost pidfd of pid
 * may: child
 * live: no: the test takes none */
#include "state.h"
#include <poll.h>
static int fd;
static void make(void)
{
	int child = MUST(fork());
	if (!child) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		for (;;)
			pause();
	}
	fd = MUST(syscall(SYS_pidfd_open, child, 0));
}
static void check(void)
{
	struct pollfd p = { fd, POLLIN, 0 };
	CHECK(poll(&p, 1, 0) == 1);
	CHECK(syscall(SYS_pidfd_send_signal, fd, 0, NULL, 0) == -1 && errno == ESRCH);
}

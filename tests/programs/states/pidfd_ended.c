/* A pidfd of a child that has ended and been waited for.
 * expect: exact
 * live: no: the test takes none */
#include "look.h"
#include <poll.h>
#include <sys/wait.h>
static int fd;
static void make(void)
{
	int child = MUST(fork());
	if (!child)
		_exit(0);
	fd = MUST(syscall(SYS_pidfd_open, child, 0));
	MUST(waitpid(child, NULL, 0));
}
static void check(void)
{
	char path[40];
	struct pollfd p = { fd, POLLIN, 0 };
	snprintf(path, sizeof path, "/proc/self/fdinfo/%d", fd);
	SAME(strtol(line_of(path, "Pid"), NULL, 10), -1);
	CHECK(poll(&p, 1, 0) == 1);
	CHECK(syscall(SYS_pidfd_send_signal, fd, 0, NULL, 0) == -1 && errno == ESRCH);
	CHECK(waitpid(-1, NULL, WNOHANG) == -1 && errno == ECHILD);
}

/* Pidfds of the process itself, in blocking mode and not.
 * expect: exact
 * live: no: the test takes none */
#include "look.h"
#include <poll.h>
static int fd, quick;
static void make(void)
{
	fd = MUST(syscall(SYS_pidfd_open, getpid(), 0));
	quick = MUST(syscall(SYS_pidfd_open, getpid(), O_NONBLOCK));
}
static void check(void)
{
	char path[40];
	struct pollfd p = { fd, POLLIN, 0 };
	snprintf(path, sizeof path, "/proc/self/fdinfo/%d", fd);
	SAME(strtol(line_of(path, "Pid"), NULL, 10), getpid());
	CHECK(poll(&p, 1, 0) == 0);
	CHECK(syscall(SYS_pidfd_send_signal, fd, 0, NULL, 0) == 0);
	CHECK(!(fcntl(fd, F_GETFL) & O_NONBLOCK) && fcntl(quick, F_GETFL) & O_NONBLOCK);
}

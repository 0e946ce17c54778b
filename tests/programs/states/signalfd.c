/* A signalfd, with signals to be read from it.
 * expect: exact */
#include "state.h"
#include <sys/signalfd.h>
static int fd;
static void make(void)
{
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	sigaddset(&set, SIGRTMAX - 1);
	sigprocmask(SIG_BLOCK, &set, NULL);
	sigdelset(&set, SIGUSR1);
	fd = MUST(signalfd(-1, &set, SFD_NONBLOCK));
	MUST(kill(getpid(), SIGUSR1));
	MUST(sigqueue(getpid(), SIGRTMAX - 1, (union sigval){ .sival_int = 55 }));
}
static void check(void)
{
	struct signalfd_siginfo info;
	CHECK(read(fd, &info, sizeof info) == sizeof info);
	SAME(info.ssi_signo, SIGRTMAX - 1);
	SAME(info.ssi_int, 55);
	CHECK(read(fd, &info, sizeof info) == -1 && errno == EAGAIN);
}

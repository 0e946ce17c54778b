/* A lease on a file.
 * expect: exact
 * live: no: procfs tells leases by no descriptor */
#include "state.h"
static int fd;
static volatile int broken;
static void handler(int signal, siginfo_t *info, void *context) { broken = info->si_fd; }
static void make(void)
{
	struct sigaction action = { .sa_sigaction = handler, .sa_flags = SA_SIGINFO };
	MUST(sigaction(SIGRTMIN, &action, NULL));
	MUST(close(open("file", O_RDWR | O_CREAT, 0600)));
	fd = MUST(open("file", O_RDONLY));
	MUST(fcntl(fd, F_SETSIG, SIGRTMIN));
	MUST(fcntl(fd, F_SETLEASE, F_RDLCK));
}
static void check(void)
{
	SAME(fcntl(fd, F_GETLEASE), F_RDLCK);
	CHECK(open("file", O_RDWR | O_NONBLOCK) == -1 && errno == EWOULDBLOCK);
	rest(0.1);
	SAME(broken, fd);
	CHECK(fcntl(fd, F_SETLEASE, F_UNLCK) == 0);
	CHECK(open("file", O_RDWR | O_NONBLOCK) >= 0);
}

/* Who is told of a file's input: F_SETOWN, F_SETSIG, O_ASYNC.
 * expect: exact
 * live: no: procfs does not say */
#include "state.h"
static int fds[2];
static volatile int told, of;
static void handler(int signal, siginfo_t *info, void *context) { told = signal, of = info->si_fd; }
static void make(void)
{
	struct sigaction action = { .sa_sigaction = handler, .sa_flags = SA_SIGINFO };
	MUST(sigaction(SIGRTMIN + 2, &action, NULL));
	MUST(pipe(fds));
	MUST(fcntl(fds[0], F_SETOWN, getpid()));
	MUST(fcntl(fds[0], F_SETSIG, SIGRTMIN + 2));
	MUST(fcntl(fds[0], F_SETFL, O_ASYNC | O_NONBLOCK));
}
static void check(void)
{
	SAME(fcntl(fds[0], F_GETOWN), getpid());
	SAME(fcntl(fds[0], F_GETSIG), SIGRTMIN + 2);
	SAME(fcntl(fds[0], F_GETFL) & (O_ASYNC | O_NONBLOCK), O_ASYNC | O_NONBLOCK);
	CHECK(write(fds[1], "x", 1) == 1);
	rest(0.1);
	SAME(told, SIGRTMIN + 2);
	SAME(of, fds[0]);
}

/* A thread in sigwaitinfo(2), and its own mask afterwards.
 * expect: exact
 * live: no: to be stopped for a look ends the call */
#include "call.h"
static struct caller c;
static siginfo_t info;
static volatile int after;
static long call(void)
{
	sigset_t set, now;
	sigemptyset(&set);
	sigaddset(&set, SIGRTMIN + 5);
	long result = sigwaitinfo(&set, &info);
	pthread_sigmask(SIG_SETMASK, NULL, &now);
	after = sigismember(&now, SIGRTMIN + 5) | sigismember(&now, SIGUSR1) << 1;
	return result;
}
static void make(void)
{
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, SIGRTMIN + 5);
	sigprocmask(SIG_BLOCK, &set, NULL);
	begin(&c, call, SYS_rt_sigtimedwait);
}
static void check(void)
{
	still_in(&c);
	CHECK(sigqueue(getpid(), SIGRTMIN + 5, (union sigval){ .sival_int = 4321 }) == 0);
	back_with(&c, SIGRTMIN + 5, 0);
	SAME(info.si_value.sival_int, 4321);
	SAME(after, 1);
}

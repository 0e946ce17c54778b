/* A thread in sigsuspend(2): the mask of the wait, and its own afterwards.
 * expect: exact */
#include "call.h"
static struct caller c;
static volatile int handled;
static volatile unsigned long after;
static void handler(int signal) { handled = signal; }
static long call(void)
{
	sigset_t mask, now;
	sigfillset(&mask);
	sigdelset(&mask, SIGUSR2);
	long result = sigsuspend(&mask);
	int error = errno;
	pthread_sigmask(SIG_SETMASK, NULL, &now);
	after = sigismember(&now, SIGUSR2) | sigismember(&now, SIGUSR1) << 1;
	errno = error;
	return result;
}
static void make(void)
{
	sigset_t mask;
	signal(SIGUSR2, handler);
	sigemptyset(&mask);
	sigaddset(&mask, SIGUSR2);
	sigprocmask(SIG_BLOCK, &mask, NULL);
	begin(&c, call, SYS_rt_sigsuspend);
}
static void check(void)
{
	still_in(&c);
	CHECK(pthread_kill(c.thread, SIGUSR2) == 0);
	back_with(&c, -1, EINTR);
	SAME(handled, SIGUSR2);
	SAME(after, 1);
}

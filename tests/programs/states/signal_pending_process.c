/* Signals that wait for the process, several of one number, in order and with their values.
 * expect: exact */
#include "state.h"
#define N 5
static sigset_t set;
static void make(void)
{
	sigemptyset(&set);
	sigaddset(&set, SIGRTMIN + 3);
	sigaddset(&set, SIGUSR2);
	sigprocmask(SIG_BLOCK, &set, NULL);
	for (int i = 0; i < N; i++)
		MUST(sigqueue(getpid(), SIGRTMIN + 3, (union sigval){ .sival_int = 100 + i }));
	MUST(kill(getpid(), SIGUSR2));
	MUST(kill(getpid(), SIGUSR2));
}
static void check(void)
{
	struct timespec none = { 0, 0 };
	siginfo_t info;
	SAME(sigtimedwait(&set, &info, &none), SIGUSR2);
	SAME(info.si_code, SI_USER);
	SAME(info.si_pid, getpid());
	for (int i = 0; i < N; i++) {
		SAME(sigtimedwait(&set, &info, &none), SIGRTMIN + 3);
		SAME(info.si_code, SI_QUEUE);
		SAME(info.si_value.sival_int, 100 + i);
		SAME(info.si_pid, getpid());
	}
	CHECK(sigtimedwait(&set, &info, &none) == -1 && errno == EAGAIN);
}

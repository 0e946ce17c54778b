/* Signals that wait for one thread and no other.
 * expect: exact */
#include "state.h"
static sigset_t set;
static pthread_t thread;
static volatile int go, bad;
static void *run(void *unused)
{
	struct timespec none = { 0, 0 };
	siginfo_t info;
	while (!go)
		rest(0.3);
	/* SI_TKILL, which the C library tells as SI_USER. */
	if (sigtimedwait(&set, &info, &none) != SIGUSR1 || info.si_code != SI_USER)
		bad |= 1;
	for (int i = 0; i < 3; i++)
		if (sigtimedwait(&set, &info, &none) != SIGRTMIN + 1 || info.si_value.sival_int != i)
			bad |= 2;
	if (sigtimedwait(&set, &info, &none) != -1)
		bad |= 4;
	return unused;
}
static void make(void)
{
	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	sigaddset(&set, SIGRTMIN + 1);
	sigprocmask(SIG_BLOCK, &set, NULL);
	MUST(-pthread_create(&thread, NULL, run, NULL));
	MUST(-pthread_kill(thread, SIGUSR1));
	for (int i = 0; i < 3; i++)
		MUST(-pthread_sigqueue(thread, SIGRTMIN + 1, (union sigval){ .sival_int = i }));
}
static void check(void)
{
	struct timespec none = { 0, 0 };
	siginfo_t info;
	CHECK(sigtimedwait(&set, &info, &none) == -1 && errno == EAGAIN);
	go = 1;
	pthread_join(thread, NULL);
	SAME(bad, 0);
}

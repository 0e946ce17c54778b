/* Each thread's own signal mask.
 * expect: exact */
#include "state.h"
#define N 4
static pthread_t threads[N];
static volatile int go, bad;
static void *run(void *of)
{
	sigset_t set;
	long n = (long)of;
	sigemptyset(&set);
	sigaddset(&set, SIGUSR1 + (int)n);
	sigaddset(&set, SIGRTMIN + (int)n);
	pthread_sigmask(SIG_SETMASK, &set, NULL);
	while (!go)
		rest(0.3);
	sigset_t now;
	pthread_sigmask(SIG_SETMASK, NULL, &now);
	for (int s = 1; s < 64; s++)
		if (sigismember(&now, s) != sigismember(&set, s))
			bad = s;
	return NULL;
}
static void make(void)
{
	for (long i = 0; i < N; i++)
		MUST(-pthread_create(&threads[i], NULL, run, (void *)i));
	rest(0.3);
}
static void check(void)
{
	go = 1;
	for (int i = 0; i < N; i++)
		pthread_join(threads[i], NULL);
	SAME(bad, 0);
}

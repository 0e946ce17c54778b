/* A process with two threads that is stopped by SIGSTOP nearly always; a timer lets it go on every
 * ten seconds, for a moment. Restored as a process that runs, it would find itself between two.
 * expect: exact
 * may: overruns of timer
 * live: no: it is not to be looked at while it is stopped */
#include "state.h"
#define PERIOD 10
static struct timespec first;
static volatile double early;
static void *run(void *unused)
{
	for (;;) {
		struct timespec now;
		rest(1);
		kill(getpid(), SIGSTOP);
		/* Until all threads have heard of it. */
		sched_yield();
		clock_gettime(CLOCK_MONOTONIC, &now);
		double since = now.tv_sec - first.tv_sec + (now.tv_nsec - first.tv_nsec) / 1e9;
		since -= (long)(since / PERIOD) * PERIOD;
		if (since > 4)
			early = since;
	}
	return unused;
}
static void make(void)
{
	pthread_t thread;
	timer_t timer;
	struct sigevent event = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGCONT };
	struct itimerspec often = { .it_interval = { PERIOD, 0 } };
	seconds_from_now(&first, CLOCK_MONOTONIC, PERIOD);
	often.it_value = first;
	MUST(timer_create(CLOCK_MONOTONIC, &event, &timer));
	MUST(timer_settime(timer, TIMER_ABSTIME, &often, NULL));
	MUST(-pthread_create(&thread, NULL, run, NULL));
}
static void check(void)
{
	if (early > 0)
		FAIL("it went on %ld ms after its time", (long)(early * 1000));
}

/* A timer of the process's CPU time.
 * expect: reconstructed CPU time
 * live: no: procfs does not say when they expire */
#include "state.h"
static timer_t timer;
static void make(void)
{
	struct itimerspec far = { { 5, 0 }, { 9000, 0 } };
	struct sigevent event = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN };
	MUST(timer_create(CLOCK_PROCESS_CPUTIME_ID, &event, &timer));
	MUST(timer_settime(timer, 0, &far, NULL));
}
static void check(void)
{
	struct itimerspec now;
	CHECK(timer_gettime(timer, &now) == 0);
	SAME(now.it_interval.tv_sec, 5);
	CHECK(now.it_value.tv_sec <= 5 && (now.it_value.tv_sec || now.it_value.tv_nsec));
}

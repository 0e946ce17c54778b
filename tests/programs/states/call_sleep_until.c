/* A thread in clock_nanosleep(2) until a moment of CLOCK_MONOTONIC.
 * expect: exact */
#include "call.h"
static struct caller c;
static struct timespec end;
static long call(void) { return clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &end, NULL); }
static void make(void)
{
	seconds_from_now(&end, CLOCK_MONOTONIC, 20000);
	begin(&c, call, SYS_clock_nanosleep);
}
static void check(void)
{
	struct timespec now;
	still_in(&c);
	clock_gettime(CLOCK_MONOTONIC, &now);
	CHECK(now.tv_sec < end.tv_sec);
	CHECK(now.tv_sec >= end.tv_sec - 20000);
}

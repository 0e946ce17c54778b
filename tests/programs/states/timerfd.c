/* Timerfds: far, periodic with expirations that nobody has read, disarmed, absolute.
 * expect: exact
 * live: no: procfs does not tell a disarmed one */
#include "state.h"
#include <sys/timerfd.h>
static int far, ticking, off, wall;
static void make(void)
{
	struct itimerspec spec = { .it_value = { 20000, 0 }, .it_interval = { 7, 8 } };
	far = MUST(timerfd_create(CLOCK_MONOTONIC, 0));
	MUST(timerfd_settime(far, 0, &spec, NULL));
	ticking = MUST(timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK));
	spec = (struct itimerspec){ .it_value = { 0, 1 }, .it_interval = { 0, 100000000 } };
	MUST(timerfd_settime(ticking, 0, &spec, NULL));
	off = MUST(timerfd_create(CLOCK_BOOTTIME, TFD_NONBLOCK));
	wall = MUST(timerfd_create(CLOCK_REALTIME, TFD_NONBLOCK));
	spec = (struct itimerspec){ .it_value = { time(NULL) + 100000, 0 } };
	MUST(timerfd_settime(wall, TFD_TIMER_ABSTIME, &spec, NULL));
	rest(0.5);
}
static void check(void)
{
	struct itimerspec left;
	unsigned long count;
	CHECK(timerfd_gettime(far, &left) == 0 && left.it_value.tv_sec > 15000);
	CHECK(left.it_value.tv_sec < 20000 && left.it_interval.tv_sec == 7 && left.it_interval.tv_nsec == 8);
	CHECK(read(ticking, &count, 8) == 8 && count >= 5);
	rest(0.4);
	CHECK(read(ticking, &count, 8) == 8 && count >= 2);
	CHECK(read(off, &count, 8) == -1 && errno == EAGAIN);
	CHECK(timerfd_gettime(off, &left) == 0 && !left.it_value.tv_sec && !left.it_value.tv_nsec);
	CHECK(timerfd_gettime(wall, &left) == 0 && left.it_value.tv_sec > 10000);
}

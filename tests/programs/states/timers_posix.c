/* timer_create(2): by signal, by a thread's signal, silent, disarmed, with IDs as they were.
 * expect: exact
 * live: no: procfs does not say when they expire */
#include "state.h"
static timer_t timers[5];
static volatile int ticks, value, code;
static void handler(int signal, siginfo_t *info, void *context)
{
	ticks++, value = info->si_value.sival_int, code = info->si_code;
}
static void make(void)
{
	struct sigaction action = { .sa_sigaction = handler, .sa_flags = SA_SIGINFO | SA_RESTART };
	struct itimerspec often = { { 0, 200000000 }, { 0, 200000000 } }, far = { { 3, 0 }, { 9000, 0 } };
	struct sigevent event = { .sigev_notify = SIGEV_NONE };
	MUST(sigaction(SIGRTMIN + 4, &action, NULL));
	MUST(timer_create(CLOCK_MONOTONIC, &event, &timers[0]));
	MUST(timer_create(CLOCK_REALTIME, &event, &timers[1]));
	MUST(timer_create(CLOCK_BOOTTIME, &event, &timers[2]));
	MUST(timer_delete(timers[1]));
	event = (struct sigevent){ .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN + 4,
				   .sigev_value = { .sival_int = 66 } };
	MUST(timer_create(CLOCK_MONOTONIC, &event, &timers[3]));
	event.sigev_notify = SIGEV_THREAD_ID;
	event._sigev_un._tid = getpid();
	event.sigev_value.sival_int = 67;
	MUST(timer_create(CLOCK_REALTIME, &event, &timers[4]));
	MUST(timer_settime(timers[0], 0, &far, NULL));
	MUST(timer_settime(timers[3], 0, &often, NULL));
}
static void check(void)
{
	struct itimerspec now, once = { { 0, 0 }, { 0, 100000000 } };
	int before = ticks;
	rest(1);
	CHECK(ticks >= before + 2 && value == 66 && code == SI_TIMER);
	CHECK(timer_gettime(timers[0], &now) == 0 && now.it_interval.tv_sec == 3);
	CHECK(now.it_value.tv_sec > 8000 && now.it_value.tv_sec < 9000);
	CHECK(timer_gettime(timers[2], &now) == 0 && !now.it_value.tv_sec && !now.it_value.tv_nsec);
	CHECK(timer_gettime(timers[1], &now) == -1 && errno == EINVAL);
	CHECK(timer_delete(timers[3]) == 0);
	CHECK(timer_settime(timers[4], 0, &once, NULL) == 0);
	rest(0.6);
	SAME(value, 67);
}

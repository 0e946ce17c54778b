/* setitimer(2): the real timer, and those of CPU time.
 * expect: exact
 * live: no: procfs does not say */
#include "state.h"
#include <sys/time.h>
static volatile int ticks, virtual;
static void handler(int signal) { if (signal == SIGALRM) ticks++; else virtual++; }
static void make(void)
{
	struct itimerval often = { { 0, 200000 }, { 0, 200000 } }, far = { { 5, 0 }, { 9000, 0 } };
	struct sigaction action = { .sa_handler = handler, .sa_flags = SA_RESTART };
	MUST(sigaction(SIGALRM, &action, NULL));
	MUST(sigaction(SIGVTALRM, &action, NULL));
	MUST(setitimer(ITIMER_REAL, &often, NULL));
	MUST(setitimer(ITIMER_VIRTUAL, &far, NULL));
}
static void check(void)
{
	struct itimerval now;
	int before = ticks;
	rest(1);
	CHECK(ticks >= before + 2);
	CHECK(getitimer(ITIMER_REAL, &now) == 0 && now.it_interval.tv_usec == 200000);
	CHECK(getitimer(ITIMER_VIRTUAL, &now) == 0 && now.it_interval.tv_sec == 5);
	CHECK(now.it_value.tv_sec > 8000 && now.it_value.tv_sec <= 9000);
	SAME(virtual, 0);
}

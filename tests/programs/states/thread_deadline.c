/* A thread with SCHED_DEADLINE.
 * expect: exact
 * live: no: procfs does not say its parameters */
#include "state.h"
struct sched_attr {
	unsigned size, sched_policy;
	unsigned long sched_flags;
	int sched_nice;
	unsigned sched_priority;
	unsigned long sched_runtime, sched_deadline, sched_period;
};
static pthread_t thread;
static volatile int go, bad;
static void *run(void *unused)
{
	struct sched_attr attr = { .size = sizeof attr, .sched_policy = 6,
		.sched_runtime = 1000000, .sched_deadline = 200000000, .sched_period = 200000000 };
	if (syscall(SYS_sched_setattr, 0, &attr, 0))
		bad = errno;
	while (!go)
		rest(0.3);
	struct sched_attr now = { .size = sizeof now };
	if (syscall(SYS_sched_getattr, 0, &now, sizeof now, 0) || now.sched_policy != 6 ||
	    now.sched_runtime != attr.sched_runtime || now.sched_deadline != attr.sched_deadline ||
	    now.sched_period != attr.sched_period)
		bad = 1;
	return unused;
}
static void make(void)
{
	MUST(-pthread_create(&thread, NULL, run, NULL));
	rest(0.3);
	if (bad)
		ABSENT("SCHED_DEADLINE is not to be had (errno %d)", bad);
}
static void check(void)
{
	go = 1;
	SAME(pthread_join(thread, NULL), 0);
	SAME(bad, 0);
}

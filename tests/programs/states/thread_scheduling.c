/* Scheduling: policies, priorities, nice values, affinity, timer slack.
 * expect: exact */
#include "look.h"
#include <sys/resource.h>
#define N 5
static pthread_t threads[N];
static volatile int go, bad;
static void *run(void *of)
{
	static const int policies[N] = { SCHED_FIFO, SCHED_RR, SCHED_BATCH, SCHED_IDLE, SCHED_OTHER };
	long n = (long)of;
	pid_t tid = syscall(SYS_gettid);
	struct sched_param param = { .sched_priority = n < 2 ? 10 + (int)n : 0 };
	cpu_set_t set, now;
	if (sched_setscheduler(0, policies[n], &param))
		bad = 100 + n;
	if (n >= 2 && setpriority(PRIO_PROCESS, tid, (int)n * 3 - 8))
		bad = 200 + n;
	CPU_ZERO(&set);
	CPU_SET(0, &set);
	if (n % 2 && sched_setaffinity(0, sizeof set, &set))
		bad = 300 + n;
	if (n >= 2)
		prctl(PR_SET_TIMERSLACK, 123456 + n);
	while (!go)
		rest(0.3);
	if (sched_getscheduler(0) != policies[n] || sched_getparam(0, &param) ||
	    param.sched_priority != (n < 2 ? 10 + (int)n : 0))
		bad = 400 + n;
	if (n >= 2 && getpriority(PRIO_PROCESS, tid) != (int)n * 3 - 8)
		bad = 500 + n;
	if (n % 2 && (sched_getaffinity(0, sizeof now, &now) || !CPU_EQUAL(&set, &now)))
		bad = 600 + n;
	if (n >= 2 && prctl(PR_GET_TIMERSLACK) != 123456 + n)
		bad = 700 + n;
	return NULL;
}
static void make(void)
{
	for (long i = 0; i < N; i++)
		MUST(-pthread_create(&threads[i], NULL, run, (void *)i));
	rest(0.5);
	MUST(-bad);
}
static void check(void)
{
	go = 1;
	for (int i = 0; i < N; i++)
		pthread_join(threads[i], NULL);
	SAME(bad, 0);
}

/* What a thread had set of itself by prctl(2), and seldom does: faults at the time-stamp counter,
 * its policy for memory errors, its part in writing data back, limits to speculation.
 * expect: exact
 * may: stay mapped
 * live: no: procfs does not say */
#include "state.h"
#ifndef PR_SET_IO_FLUSHER
#define PR_SET_IO_FLUSHER 57
#define PR_GET_IO_FLUSHER 58
#endif
static pthread_t thread;
static volatile int go, ready, limited;
static const char *volatile bad;
#define WANT(x) do { if (!(x)) bad = #x; } while (0)
static void *run(void *unused)
{
	WANT(prctl(PR_MCE_KILL, PR_MCE_KILL_SET, PR_MCE_KILL_EARLY, 0, 0) == 0);
	WANT(prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) == 0);
	limited = prctl(PR_SET_SPECULATION_CTRL, PR_SPEC_STORE_BYPASS, PR_SPEC_DISABLE, 0, 0) == 0;
	/* No clock of the vDSO from here on. */
	WANT(prctl(PR_SET_TSC, PR_TSC_SIGSEGV, 0, 0, 0) == 0);
	ready = 1;
	while (!go)
		syscall(SYS_nanosleep, &(struct timespec){ 0, 300000000 }, NULL);
	int tsc = 0;
	WANT(prctl(PR_GET_TSC, &tsc, 0, 0, 0) == 0 && tsc == PR_TSC_SIGSEGV);
	WANT(prctl(PR_MCE_KILL_GET, 0, 0, 0, 0) == PR_MCE_KILL_EARLY);
	WANT(prctl(PR_GET_IO_FLUSHER, 0, 0, 0, 0) == 1);
	if (limited)
		WANT(prctl(PR_GET_SPECULATION_CTRL, PR_SPEC_STORE_BYPASS, 0, 0, 0) & PR_SPEC_DISABLE);
	return unused;
}
static void make(void)
{
	MUST(-pthread_create(&thread, NULL, run, NULL));
	while (!ready)
		rest(0.1);
	if (bad)
		ABSENT("%s", bad);
}
static void check(void)
{
	int tsc = 0;
	CHECK(prctl(PR_GET_TSC, &tsc, 0, 0, 0) == 0 && tsc == PR_TSC_ENABLE);
	CHECK(prctl(PR_MCE_KILL_GET, 0, 0, 0, 0) == PR_MCE_KILL_DEFAULT);
	go = 1;
	SAME(pthread_join(thread, NULL), 0);
	if (bad)
		FAIL("%s", bad);
}

/* The vDSO: its functions, called by the addresses that were looked up before the crash.
 * expect: exact */
#include "state.h"
#include <sys/auxv.h>
#include <sys/time.h>
static void *at;
static struct timespec before;
static void make(void)
{
	at = (void *)getauxval(AT_SYSINFO_EHDR);
	clock_gettime(CLOCK_MONOTONIC, &before);
}
static void check(void)
{
	struct timespec by_vdso, by_call;
	unsigned cpu;
	CHECK((void *)getauxval(AT_SYSINFO_EHDR) == at && !memcmp(at, "\177ELF", 4));
	for (int i = 0; i < 100; i++) {
		CHECK(clock_gettime(CLOCK_MONOTONIC, &by_vdso) == 0);
		CHECK(syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &by_call) == 0);
		CHECK(by_vdso.tv_sec >= before.tv_sec);
		long gap = (by_call.tv_sec - by_vdso.tv_sec) * 1000000000 + by_call.tv_nsec - by_vdso.tv_nsec;
		CHECK(gap >= 0 && gap < 60000000000);
	}
	SAME(getcpu(&cpu, NULL), 0);
	CHECK(time(NULL) > 1000000000);
}

/* Restartable sequences: the C library's registration, which the kernel keeps current.
 * expect: exact */
#include "state.h"
#include <sys/rseq.h>
static struct rseq *area;
static void make(void)
{
	area = (struct rseq *)((char *)__builtin_thread_pointer() + __rseq_offset);
	if (__rseq_size == 0)
		ABSENT("no restartable sequences");
}
static void check(void)
{
	struct rseq other __attribute__((aligned(32))) = { 0 };
	cpu_set_t set;
	CHECK(syscall(SYS_rseq, &other, sizeof other, 0, RSEQ_SIG) == -1 && errno == EINVAL);
	CHECK(syscall(SYS_rseq, area, 32, 0, RSEQ_SIG) == -1 && errno == EBUSY);
	for (int cpu = 0; cpu < 8; cpu++) {
		CPU_ZERO(&set);
		CPU_SET(cpu, &set);
		if (sched_setaffinity(0, sizeof set, &set) == 0) {
			sched_yield();
			SAME(((volatile struct rseq *)area)->cpu_id, cpu);
		}
	}
}

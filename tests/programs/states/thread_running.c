/* A thread that computes: general registers alone, with no call between.
 * expect: exact
 * may: FPU registers
 * may: FS and GS base */
#include "state.h"
#include <sys/resource.h>
static pthread_t thread;
static volatile unsigned long go, turns, sum, bad;
static void *run(void *unused)
{
	setpriority(PRIO_PROCESS, syscall(SYS_gettid), 19);
	/* Two counters that only registers know, one up and one down. */
	unsigned long up = 1000, down = (unsigned long)-1000;
	asm volatile("1: add $3, %0; sub $3, %1; mov %0, %%rax; add %1, %%rax; jnz 2f\n"
		     "mov %0, %2; cmpq $0, %3; je 1b; jmp 3f; 2: movq $1, %4; 3:"
		     : "+r"(up), "+r"(down), "=m"(turns), "+m"(go), "+m"(bad)
		     :
		     : "rax", "cc", "memory");
	sum = up + down;
	return unused;
}
static void make(void)
{
	MUST(-pthread_create(&thread, NULL, run, NULL));
	rest(0.2);
}
static void check(void)
{
	unsigned long before = turns;
	for (int i = 0; i < 100 && turns == before; i++)
		rest(0.2);
	CHECK(turns > before && before > 1000);
	go = 1;
	pthread_join(thread, NULL);
	SAME(bad, 0);
	SAME(sum, 0);
}

/* An alternate signal stack, and a thread that is on it, in a handler.
 * expect: exact
 * live: no: procfs does not say */
#include "call.h"
#include <linux/futex.h>
static struct caller c;
static int word = 1;
static char room[64 << 10] __attribute__((aligned(16)));
static stack_t within, after;
static volatile char *where;
static void handler(int signal)
{
	char here;
	where = &here;
	syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 1, NULL, NULL, 0);
	sigaltstack(NULL, &within);
}
static long call(void)
{
	stack_t stack = { .ss_sp = room, .ss_size = sizeof room };
	struct sigaction action = { .sa_handler = handler, .sa_flags = SA_ONSTACK };
	sigaltstack(&stack, NULL);
	sigaction(SIGUSR1, &action, NULL);
	pthread_kill(pthread_self(), SIGUSR1);
	return sigaltstack(NULL, &after);
}
static void make(void) { begin(&c, call, SYS_futex); }
static void check(void)
{
	still_in(&c);
	word = 2;
	syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
	back_with(&c, 0, 0);
	CHECK(room <= where && where < room + sizeof room);
	CHECK(within.ss_sp == room && within.ss_size == sizeof room && within.ss_flags == SS_ONSTACK);
	CHECK(after.ss_sp == room && after.ss_size == sizeof room && after.ss_flags == 0);
}

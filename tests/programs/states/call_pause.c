/* A thread in pause(2), and a handler that ends it.
 * expect: exact */
#include "call.h"
static struct caller c;
static volatile int handled;
static void handler(int signal) { handled = signal; }
static long call(void) { return syscall(SYS_pause); }
static void make(void)
{
	struct sigaction action = { .sa_handler = handler, .sa_flags = SA_RESTART };
	MUST(sigaction(SIGUSR1, &action, NULL));
	begin(&c, call, SYS_pause);
}
static void check(void)
{
	still_in(&c);
	CHECK(pthread_kill(c.thread, SIGUSR1) == 0);
	back_with(&c, -1, EINTR);
	SAME(handled, SIGUSR1);
}

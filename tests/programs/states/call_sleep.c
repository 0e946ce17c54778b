/* Threads in nanosleep(2): the time that was left, and where it is told.
 * expect: reconstructed stay mapped */
#include "call.h"
static struct caller c;
static struct timespec left;
static long call(void)
{
	struct timespec span = { 20000, 5 };
	return syscall(SYS_nanosleep, &span, &left);
}
static void handler(int signal) {}
static void make(void)
{
	struct sigaction action = { .sa_handler = handler };
	MUST(sigaction(SIGUSR1, &action, NULL));
	begin(&c, call, SYS_nanosleep);
}
static void check(void)
{
	still_in(&c);
	CHECK(pthread_kill(c.thread, SIGUSR1) == 0);
	back_with(&c, -1, EINTR);
	CHECK(left.tv_sec > 10000 && left.tv_sec <= 20000);
}

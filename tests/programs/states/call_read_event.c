/* Threads in read(2) on an eventfd, a signalfd and a timerfd.
 * expect: exact */
#include "call.h"
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <sys/timerfd.h>
static struct caller c, d, e;
static int event, signals, timer;
static unsigned long count, expired;
static struct signalfd_siginfo info;
static long call(void) { return read(event, &count, 8); }
static long call_too(void) { return read(signals, &info, sizeof info); }
static long call_three(void) { return read(timer, &expired, 8); }
static void make(void)
{
	sigset_t set;
	struct itimerspec far = { .it_value = { 20000, 0 } };
	sigemptyset(&set);
	sigaddset(&set, SIGUSR2);
	sigprocmask(SIG_BLOCK, &set, NULL);
	event = MUST(eventfd(0, 0));
	signals = MUST(signalfd(-1, &set, 0));
	timer = MUST(timerfd_create(CLOCK_MONOTONIC, 0));
	MUST(timerfd_settime(timer, 0, &far, NULL));
	begin(&c, call, SYS_read);
	begin(&d, call_too, SYS_read);
	begin(&e, call_three, SYS_read);
}
static void check(void)
{
	unsigned long three = 3;
	struct itimerspec now = { .it_value = { 0, 1 } }, left;
	still_in(&c);
	still_in(&d);
	still_in(&e);
	CHECK(timerfd_gettime(timer, &left) == 0 && left.it_value.tv_sec > 15000);
	CHECK(write(event, &three, 8) == 8);
	back_with(&c, 8, 0);
	SAME(count, 3);
	/* Of the thread: a signalfd tells those of whoever reads it, too. */
	CHECK(kill(getpid(), SIGUSR2) == 0);
	back_with(&d, sizeof info, 0);
	SAME(info.ssi_signo, SIGUSR2);
	SAME(info.ssi_pid, getpid());
	CHECK(timerfd_settime(timer, 0, &now, NULL) == 0);
	back_with(&e, 8, 0);
	SAME(expired, 1);
}

/* Threads that wait for a lock which another descriptor of the process has.
 * expect: exact */
#include "call.h"
#include <sys/file.h>
static struct caller c, d;
static int holder, waiter;
static long call(void) { return flock(waiter, LOCK_EX); }
static long call_too(void)
{
	struct flock lock = { .l_type = F_WRLCK, .l_start = 0, .l_len = 10 };
	return fcntl(waiter, F_OFD_SETLKW, &lock);
}
static void make(void)
{
	struct flock lock = { .l_type = F_WRLCK, .l_start = 5, .l_len = 10 };
	holder = MUST(open("file", O_RDWR | O_CREAT, 0600));
	waiter = MUST(open("file", O_RDWR));
	MUST(flock(holder, LOCK_EX));
	MUST(fcntl(holder, F_OFD_SETLK, &lock));
	begin(&c, call, SYS_flock);
	begin(&d, call_too, SYS_fcntl);
}
static void check(void)
{
	still_in(&c);
	still_in(&d);
	CHECK(flock(holder, LOCK_UN) == 0);
	back_with(&c, 0, 0);
	struct flock lock = { .l_type = F_UNLCK };
	CHECK(fcntl(holder, F_OFD_SETLK, &lock) == 0);
	back_with(&d, 0, 0);
}

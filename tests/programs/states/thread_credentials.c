/* A thread whose credentials are not its siblings'.
 * expect: exact */
#include "look.h"
static pthread_t thread;
static volatile int go, bad;
static void *run(void *unused)
{
	if (syscall(SYS_setresgid, 70, 71, 72) || syscall(SYS_setresuid, 80, 81, 82))
		bad = errno;
	while (!go)
		rest(0.3);
	uid_t r, e, s;
	if (syscall(SYS_getresuid, &r, &e, &s) || r != 80 || e != 81 || s != 82)
		bad = 1001;
	if (syscall(SYS_getresgid, &r, &e, &s) || r != 70 || e != 71 || s != 72)
		bad = 1002;
	return unused;
}
static void make(void)
{
	MUST(-pthread_create(&thread, NULL, run, NULL));
	rest(0.3);
	MUST(-bad);
}
static void check(void)
{
	SAME(syscall(SYS_geteuid), 0);
	go = 1;
	pthread_join(thread, NULL);
	SAME(bad, 0);
}

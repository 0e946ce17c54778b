/* Seccomp filters: one of all threads, one more of a single thread; no_new_privs.
 * expect: exact */
#include "look.h"
#include <linux/filter.h>
#include <linux/seccomp.h>
static pthread_t thread;
static volatile int go, bad;
static void deny(int number, int error)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, number, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | error),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = { 4, code };
	if (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program))
		bad = errno;
}
static void *run(void *unused)
{
	deny(SYS_getppid, 99);
	while (!go)
		rest(0.3);
	if (syscall(SYS_getppid) != -1 || errno != 99)
		bad = 1000;
	if (syscall(SYS_getpgrp) != -1 || errno != 98)
		bad = 1001;
	return unused;
}
static void make(void)
{
	MUST(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
	deny(SYS_getpgrp, 98);
	MUST(-pthread_create(&thread, NULL, run, NULL));
	rest(0.3);
	MUST(-bad);
}
static void check(void)
{
	CHECK(syscall(SYS_getpgrp) == -1 && errno == 98);
	CHECK(syscall(SYS_getppid) >= 0);
	SAME(prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0), 1);
	SAME(atoi(line_of("/proc/self/status", "Seccomp")), 2);
	SAME(atoi(line_of("/proc/self/status", "Seccomp_filters")), 1);
	go = 1;
	pthread_join(thread, NULL);
	SAME(bad, 0);
}

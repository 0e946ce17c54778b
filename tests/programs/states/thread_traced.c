/* A process whose own child traces it, and holds it at a signal that it is about to get.
 * expect: lost tracer
 * may: child
 * live: no: it has a tracer already */
#include "state.h"
#include <sys/ptrace.h>
#include <sys/wait.h>
static volatile int got, value;
static void handler(int signal, siginfo_t *info, void *context)
{
	got = signal;
	value = info->si_value.sival_int;
}
static pthread_t thread;
static volatile int tid, seen;
static void *run(void *unused)
{
	tid = gettid();
	while (!got)
		rest(0.2);
	seen = got;
	return unused;
}
static void make(void)
{
	struct sigaction action = { .sa_sigaction = handler, .sa_flags = SA_SIGINFO };
	MUST(sigaction(SIGUSR2, &action, NULL));
	prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY);
	MUST(-pthread_create(&thread, NULL, run, NULL));
	rest(0.2);
	int child = MUST(fork());
	if (!child) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (ptrace(PTRACE_SEIZE, tid, 0, 0))
			_exit(1);
		/* Its signals are held. */
		for (;;)
			pause();
	}
	rest(0.5);
	siginfo_t info = { .si_signo = SIGUSR2, .si_code = SI_QUEUE };
	info.si_pid = getpid();
	info.si_uid = getuid();
	info.si_value.sival_int = 4711;
	MUST(syscall(SYS_rt_tgsigqueueinfo, getpid(), tid, SIGUSR2, &info));
	rest(0.3);
	MUST(got ? -1 : 0);
}
static void check(void)
{
	rest(1);
	SAME(seen, SIGUSR2);
	SAME(value, 4711);
	SAME(pthread_join(thread, NULL), 0);
}

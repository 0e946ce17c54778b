/* A process with few rights: another user, one capability, seccomp filters,
 * limits, a nice value; and timers of every kind, an alternate signal stack,
 * a TCP listener. It checks itself at every tick and says BAD where something
 * is not as it was set. Output as living.c's. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static int logfd;
static volatile unsigned long rings, alarms, bad_stack;
static char stack[65536];

static void say(const char *format, ...)
{
	char line[256];
	va_list args;
	va_start(args, format);
	int n = vsnprintf(line, sizeof line, format, args);
	va_end(args);
	if (write(logfd, line, n) != n)
		_exit(9);
}

#define CHECK(x) do { if (!(x)) say("BAD %s (errno %d) in line %d\n", #x, errno, __LINE__); } while (0)

static void on_ring(int s, siginfo_t *info, void *context)
{
	char here;
	(void)context;
	if (&here < stack || &here >= stack + sizeof stack)
		bad_stack++;
	if (s == SIGRTMIN + 3 && info->si_value.sival_int == 4242)
		rings++;
	if (s == SIGALRM)
		alarms++;
}

static void save(const char *dir, const char *name, const void *bytes, size_t len)
{
	char path[256];
	snprintf(path, sizeof path, "%s/%s", dir, name);
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
	CHECK(write(fd, bytes, len) == (ssize_t)len);
	close(fd);
}

static void capabilities(unsigned *effective, unsigned *permitted)
{
	struct __user_cap_header_struct head = { _LINUX_CAPABILITY_VERSION_3, 0 };
	struct __user_cap_data_struct data[2];
	CHECK(syscall(SYS_capget, &head, data) == 0);
	*effective = data[0].effective;
	*permitted = data[0].permitted;
}

int main(int argc, char **argv)
{
	char path[256];
	(void)argc;
	close_range(3, ~0u, 0);
	snprintf(path, sizeof path, "%s/log", argv[1]);
	logfd = open(path, O_WRONLY | O_CREAT | O_APPEND, 0600);
	if (logfd < 0)
		return 1;

	stack_t alternate = { .ss_sp = stack, .ss_size = sizeof stack };
	CHECK(sigaltstack(&alternate, 0) == 0);
	unsigned long where[2] = { (unsigned long)stack, sizeof stack };
	save(argv[1], "altstack", where, sizeof where);
	struct sigaction action = { .sa_sigaction = on_ring, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART };
	sigaction(SIGRTMIN + 3, &action, 0);
	sigaction(SIGALRM, &action, 0);
	signal(SIGPIPE, SIG_IGN);
	unsigned long actions[64][4];
	memset(actions, 0, sizeof actions);
	for (int s = 1; s <= 64; s++)
		syscall(SYS_rt_sigaction, s, 0, actions[s - 1], 8);
	save(argv[1], "sigactions", actions, sizeof actions);

	/* Timer 0 goes again, so that IDs do not start at 0. */
	timer_t none, timer;
	struct sigevent event = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN + 3, .sigev_value.sival_int = 4242 };
	CHECK(timer_create(CLOCK_MONOTONIC, &event, &none) == 0);
	CHECK(timer_create(CLOCK_MONOTONIC, &event, &timer) == 0);
	CHECK(timer_delete(none) == 0);
	struct itimerspec every = { { 0, 30000000 }, { 0, 30000000 } };
	CHECK(timer_settime(timer, 0, &every, 0) == 0);
	struct itimerval often = { { 0, 40000 }, { 0, 40000 } };
	CHECK(setitimer(ITIMER_REAL, &often, 0) == 0);

	int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	struct sockaddr_in any = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	int one = 1;
	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
	CHECK(bind(listener, (void *)&any, sizeof any) == 0);
	CHECK(listen(listener, 7) == 0);
	socklen_t len = sizeof any;
	getsockname(listener, (void *)&any, &len);

	struct rlimit files = { 333, 444 };
	CHECK(setrlimit(RLIMIT_NOFILE, &files) == 0);
	CHECK(setpriority(PRIO_PROCESS, 0, 7) == 0);
	cpu_set_t cpus;
	CPU_ZERO(&cpus);
	CPU_SET(0, &cpus);
	CHECK(sched_setaffinity(0, sizeof cpus, &cpus) == 0);
	umask(027);

	/* NET_ADMIN (12) alone, as user 65534 in groups 7 and 8. */
	gid_t groups[] = { 7, 8 };
	CHECK(setgroups(2, groups) == 0);
	for (int c = 20; c < 38; c++)
		CHECK(prctl(PR_CAPBSET_DROP, c, 0, 0, 0) == 0);
	prctl(PR_SET_KEEPCAPS, 1);
	CHECK(setresgid(1001, 1002, 1003) == 0);
	CHECK(setresuid(65534, 65534, 65533) == 0);
	struct __user_cap_header_struct head = { _LINUX_CAPABILITY_VERSION_3, 0 };
	struct __user_cap_data_struct data[2] = { { 1u << 12, 1u << 12, 1u << 12 }, { 0, 0, 0 } };
	CHECK(syscall(SYS_capset, &head, data) == 0);
	CHECK(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, 12, 0, 0) == 0);
	prctl(PR_SET_DUMPABLE, 1);
	prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
	/* getppid is EDOM; munmap of anything above 1 GiB long kills. */
	struct sock_filter filter[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_getppid, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EDOM),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_munmap, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = { sizeof filter / sizeof filter[0], filter };
	CHECK(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0);

	for (unsigned long tick = 1;; tick++) {
		unsigned long rings_then = rings, alarms_then = alarms;
		for (int i = 0; i < 500 && (rings == rings_then || alarms == alarms_then); i++) {
			struct timespec nap = { 0, 5000000 };
			nanosleep(&nap, 0);
		}
		CHECK(rings > rings_then);
		CHECK(alarms > alarms_then);
		CHECK(bad_stack == 0);
		struct itimerspec left;
		CHECK(timer_gettime(timer, &left) == 0 && left.it_interval.tv_nsec == 30000000);
		uid_t r, e, s;
		CHECK(getresuid(&r, &e, &s) == 0 && r == 65534 && e == 65534 && s == 65533);
		CHECK(getresgid(&r, &e, &s) == 0 && r == 1001 && e == 1002 && s == 1003);
		gid_t list[8];
		CHECK(getgroups(8, list) == 2 && list[0] == 7 && list[1] == 8);
		unsigned effective, permitted;
		capabilities(&effective, &permitted);
		CHECK(effective == 1u << 12 && permitted == 1u << 12);
		CHECK(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_IS_SET, 12, 0, 0) == 1);
		CHECK(prctl(PR_CAPBSET_READ, 25, 0, 0, 0) == 0);
		CHECK(prctl(PR_CAPBSET_READ, 19, 0, 0, 0) == 1);
		CHECK(prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 1);
		CHECK(prctl(PR_GET_DUMPABLE) == 1);
		CHECK(prctl(PR_GET_SECCOMP) == 2);
		CHECK(syscall(SYS_getppid) == -1 && errno == EDOM);
		struct rlimit now;
		CHECK(getrlimit(RLIMIT_NOFILE, &now) == 0 && now.rlim_cur == 333 && now.rlim_max == 444);
		CHECK(getpriority(PRIO_PROCESS, 0) == 7);
		CHECK(sched_getaffinity(0, sizeof cpus, &cpus) == 0 && CPU_COUNT(&cpus) == 1 && CPU_ISSET(0, &cpus));
		mode_t mask = umask(027);
		CHECK(mask == 027);
		stack_t then;
		CHECK(sigaltstack(0, &then) == 0 && then.ss_sp == stack && then.ss_size == sizeof stack);
		struct sockaddr_in bound;
		len = sizeof bound;
		CHECK(getsockname(listener, (void *)&bound, &len) == 0 && bound.sin_port == any.sin_port);
		int client = socket(AF_INET, SOCK_STREAM, 0);
		CHECK(connect(client, (void *)&any, sizeof any) == 0);
		int server = accept4(listener, 0, 0, SOCK_CLOEXEC);
		CHECK(server >= 0);
		close(server);
		close(client);
		struct timespec t;
		clock_gettime(CLOCK_MONOTONIC, &t);
		say("tick %lu pid %d mono %lu spins %lu\n", tick, (int)syscall(SYS_getpid),
		    t.tv_sec * 1000000000ul + t.tv_nsec, rings);
	}
}

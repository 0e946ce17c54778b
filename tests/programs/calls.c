/* Threads in the middle of system calls: with timeouts of an hour, and with bytes half moved. Each
 * says what its call returned, and whether its registers are what they were before it.
 *
 * calls DIRECTORY [SECONDS]   writes DIRECTORY/log: "NAME RESULT ok MILLISECONDS", or BAD instead of
 * ok; the time is that since the call began, by CLOCK_MONOTONIC. "ready" before; bytes are read when
 * there is a file DIRECTORY/go. SECONDS: the timeouts instead of an hour. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/select.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define MUCH 100000

static int logfd, pipe_ends[2], vector_ends[2], epoll_fd;
static long seconds = 3600;
static struct timespec hour, hour_of_ppoll;
static struct timeval hour_of_select;
static uint32_t word = 7;
static sigset_t some;
static unsigned char much[MUCH];

static long now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static void say(const char *name, long result, int ok, long since)
{
	char line[100];
	int n = snprintf(line, sizeof line, "%s %ld %s %ld\n", name, result, ok ? "ok" : "BAD",
			 now() - since);
	if (write(logfd, line, n) != n)
		_exit(9);
}

/* A call whose registers are looked at afterwards, every one that it may not change. */
static void call(const char *name, long nr, long a, long b, long c, long d, long e, long f)
{
	long before[6] = {a, b, c, d, e, f}, after[6], result;
	prctl(PR_SET_NAME, name);
	long since = now();
	__asm__ volatile(
		"mov 0(%[in]), %%rdi\n mov 8(%[in]), %%rsi\n mov 16(%[in]), %%rdx\n"
		"mov 24(%[in]), %%r10\n mov 32(%[in]), %%r8\n mov 40(%[in]), %%r9\n"
		"mov %[in], %%rbx\n mov %[out], %%r12\n"
		"syscall\n"
		"mov %%rdi, 0(%%r12)\n mov %%rsi, 8(%%r12)\n mov %%rdx, 16(%%r12)\n"
		"mov %%r10, 24(%%r12)\n mov %%r8, 32(%%r12)\n mov %%r9, 40(%%r12)\n"
		: "=a"(result)
		: "a"(nr), [in] "r"(before), [out] "r"(after)
		: "rdi", "rsi", "rdx", "r10", "r8", "r9", "rbx", "r12", "rcx", "r11", "memory", "cc");
	say(name, result, memcmp(before, after, sizeof before) == 0, since);
}

static void *sleeper(void *x) { call("sleep", SYS_nanosleep, (long)&hour, 0, 3, 4, 5, 6); return x; }
static void *clocked(void *x) { call("clock", SYS_clock_nanosleep, CLOCK_MONOTONIC, 0, (long)&hour, 0, 5, 6); return x; }
static void *waiter(void *x) { call("futex", SYS_futex, (long)&word, 128, 7, (long)&hour, 5, 6); return x; }
static void *poller(void *x) { call("poll", SYS_poll, 0, 0, seconds * 1000, 4, 5, 6); return x; }
static void *epoller(void *x)
{
	static struct epoll_event event;
	call("epoll", SYS_epoll_wait, epoll_fd, (long)&event, 1, seconds * 1000, 5, 6);
	return x;
}
static void *ppoller(void *x) { call("ppoll", SYS_ppoll, 0, 0, (long)&hour_of_ppoll, 0, 8, 6); return x; }
static void *selecter(void *x) { call("select", SYS_select, 0, 0, 0, 0, (long)&hour_of_select, 6); return x; }
static void *expecter(void *x) { call("sigwait", SYS_rt_sigtimedwait, (long)&some, 0, (long)&hour, 8, 5, 6); return x; }
/* Three buffers of the same bytes, one of them empty. */
static struct iovec vector[3] = {{much, 30000}, {much + 30000, 0}, {much + 30000, MUCH - 30000}};
static void *vector_writer(void *x) { call("writev", SYS_writev, vector_ends[1], (long)vector, 3, 4, 5, 6); return x; }
static void *writer(void *x) { call("write", SYS_write, pipe_ends[1], (long)much, MUCH, 4, 5, 6); return x; }

/* All of the bytes, each once. */
static void take(const char *name, int from, long begin)
{
	static unsigned char got[MUCH];
	unsigned char one;
	size_t have = 0;
	while (have < MUCH) {
		ssize_t n = read(from, got + have, MUCH - have);
		if (n <= 0)
			break;
		have += n;
	}
	fcntl(from, F_SETFL, O_NONBLOCK);
	int more = read(from, &one, 1) == 1;
	say(name, have, !more && memcmp(got, much, MUCH) == 0, begin);
}

int main(int argc, char **argv)
{
	if (argc > 2)
		seconds = atol(argv[2]);
	hour.tv_sec = hour_of_ppoll.tv_sec = hour_of_select.tv_sec = seconds;
	long begin = now();
	char path[300];
	snprintf(path, sizeof path, "%s/log", argv[1]);
	logfd = open(path, O_WRONLY | O_CREAT | O_APPEND, 0600);
	if (pipe(pipe_ends) || pipe(vector_ends))
		return 1;
	epoll_fd = epoll_create1(0);
	sigemptyset(&some);
	sigaddset(&some, SIGUSR2);
	sigprocmask(SIG_BLOCK, &some, NULL);
	for (int i = 0; i < MUCH; i++)
		much[i] = i * 7 + i / 251;
	void *(*all[])(void *) = {sleeper, clocked, waiter, poller, epoller, ppoller, selecter, expecter, writer, vector_writer};
	pthread_t threads[10];
	for (int i = 0; i < 10; i++)
		pthread_create(&threads[i], NULL, all[i], NULL);
	usleep(300000);
	say("ready", getpid(), 1, begin);
	/* Until somebody has looked. */
	snprintf(path, sizeof path, "%s/go", argv[1]);
	while (access(path, F_OK))
		usleep(20000);
	take("read", pipe_ends[0], begin);
	take("readv", vector_ends[0], begin);
	for (int i = 0; i < 10; i++)
		pthread_join(threads[i], NULL);
	say("done", 0, 1, begin);
	for (;;)
		pause();
}

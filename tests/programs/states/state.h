/* What the programs of this directory share. Each holds one kind of state:
 *     NAME FILE        (in an empty directory of its own)
 * make() makes the state, and READY is said into FILE, or ABSENT where this
 * kernel has no such thing. The state is held until somebody appends to FILE,
 * which a dead kernel and its successor both can show. Then check() looks at
 * it, and the last word is PASS, or FAIL with the reason.
 *
 * The comment at the top of a program says what it holds, and what is to
 * become of it; tests/lab/src/states.rs reads it. */
#pragma once
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096L
/* The descriptor of FILE, out of the way of those that are tested. */
#define OUT 200

static void make(void);
static void check(void);

#define UNUSED __attribute__((unused))

UNUSED static int main_argc;
UNUSED static char **main_argv;

static void say(const char *format, ...)
{
	char line[512];
	va_list args;
	va_start(args, format);
	int len = vsnprintf(line, sizeof line - 1, format, args);
	va_end(args);
	if (len > (int)sizeof line - 2)
		len = sizeof line - 2;
	line[len] = '\n';
	if (write(OUT, line, len + 1) < 0)
		_exit(3);
}

#define FAIL(...) do { say("FAIL " __VA_ARGS__); _exit(1); } while (0)
#define ABSENT(...) do { say("ABSENT " __VA_ARGS__); _exit(0); } while (0)
#define CHECK(x) do { if (!(x)) FAIL("line %d: %s (errno %d)", __LINE__, #x, errno); } while (0)
#define SAME(a, b) do { long a_ = (long)(a), b_ = (long)(b); if (a_ != b_) \
	FAIL("line %d: %s is %ld and not %ld (errno %d)", __LINE__, #a, a_, b_, errno); } while (0)
/* Of the making: that it fails is the test's fault. */
#define MUST(x) ({ long r_ = (long)(x); if (r_ < 0) { say("BROKEN line %d: %s (errno %d)", \
	__LINE__, #x, errno); _exit(2); } r_; })

UNUSED static long seconds_from_now(struct timespec *at, int clock, double seconds)
{
	MUST(clock_gettime(clock, at));
	long ns = at->tv_nsec + (long)(seconds * 1e9);
	at->tv_sec += ns / 1000000000;
	at->tv_nsec = ns % 1000000000;
	return at->tv_sec;
}

static void rest(double seconds)
{
	struct timespec until;
	seconds_from_now(&until, CLOCK_MONOTONIC, seconds);
	while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL) == EINTR)
		;
}

/* Memory at an address of the kernel's choice. */
UNUSED static char *map(size_t len, int prot, int flags, int fd, off_t at)
{
	char *p = mmap(NULL, len, prot, flags, fd, at);
	MUST(p == MAP_FAILED ? -1 : 0);
	return p;
}

/* A pattern that differs from word to word and from seed to seed. */
UNUSED static unsigned long word_of(unsigned long seed, size_t i)
{
	return (seed << 32 | 1) * 0x9e3779b97f4a7c15UL ^ i * 0xd6e8feb86659fd93UL;
}

UNUSED static void fill(void *at, size_t len, unsigned long seed)
{
	for (size_t i = 0; i < len / 8; i++)
		((unsigned long *)at)[i] = word_of(seed, i);
}

UNUSED static int filled(const void *at, size_t len, unsigned long seed)
{
	for (size_t i = 0; i < len / 8; i++)
		if (((const unsigned long *)at)[i] != word_of(seed, i))
			return 0;
	return 1;
}

/* For the test that takes this process while it lives: procfs does not say it. */
static void tell_handlers(void)
{
	unsigned long action[4];
	int fd = open("sigactions", O_WRONLY | O_CREAT, 0600);
	for (int i = 1; fd >= 0 && i <= 64; i++)
		if (syscall(SYS_rt_sigaction, i, NULL, action, 8) || write(fd, action, 32) != 32)
			break;
	close(fd);
}

int main(int argc, char **argv)
{
	main_argc = argc;
	main_argv = argv;
	int fd = open(argv[1], O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
	if (fd < 0 || dup3(fd, OUT, O_CLOEXEC) < 0)
		return 3;
	close(fd);
	make();
	tell_handlers();
	say("READY %d", getpid());
	struct stat before, now;
	MUST(fstat(OUT, &before));
	do {
		rest(0.4);
		MUST(fstat(OUT, &now));
	} while (now.st_size == before.st_size);
	check();
	say("PASS");
	_exit(0);
}

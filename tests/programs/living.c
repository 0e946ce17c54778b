/* Something of everything that a process may hold. It checks itself: every
 * tick it looks whether what it holds still works, and says BAD where not.
 *
 * living DIRECTORY   writes DIRECTORY/log, a line for each tick:
 *     tick N pid P mono NANOSECONDS spins S sleeps W events E alarms A
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

static int logfd;
static volatile unsigned long spins, sleeps, events, alarms, signals_read;
static __thread unsigned long mine = 0x1122334455667788;
static double sum_then;
static int pipe_ends[2], event_fd, timer_fd, signal_fd, epoll_fd, listen_fd;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t go = PTHREAD_COND_INITIALIZER;
static volatile unsigned long wanted;
static unsigned char *big, *shared, *memfd_map;
#define BIG (8ul << 20)

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

static unsigned long now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000ul + t.tv_nsec;
}

/* In user mode all the time, with live FPU registers. */
static _Noreturn void *spin(void *arg)
{
	(void)arg;
	prctl(PR_SET_NAME, "spinner");
	for (;;) {
		double sum = 0;
		for (int i = 1; i < 200000; i++)
			sum += 1.0 / ((double)i * i);
		if (sum_then == 0)
			sum_then = sum;
		CHECK(sum == sum_then);
		CHECK(mine == 0x1122334455667788);
		spins++;
	}
}

/* In futex, woken at each tick. */
static _Noreturn void *sleeper(void *arg)
{
	(void)arg;
	prctl(PR_SET_NAME, "sleeper");
	pthread_mutex_lock(&lock);
	for (;;) {
		while (sleeps == wanted)
			pthread_cond_wait(&go, &lock);
		sleeps++;
	}
}

/* In read of an empty pipe; what it gets it puts into the eventfd. */
static void *reader(void *arg)
{
	(void)arg;
	char c;
	prctl(PR_SET_NAME, "reader");
	while (read(pipe_ends[0], &c, 1) == 1) {
		uint64_t one = 1;
		CHECK(write(event_fd, &one, 8) == 8);
	}
	say("BAD the pipe ended\n");
	return 0;
}

/* In epoll_wait for eventfd, timerfd, signalfd and the listener. */
static _Noreturn void *waiter(void *arg)
{
	(void)arg;
	prctl(PR_SET_NAME, "waiter");
	for (;;) {
		struct epoll_event e;
		int n = epoll_wait(epoll_fd, &e, 1, -1);
		if (n < 0 && errno == EINTR)
			continue;
		CHECK(n == 1);
		uint64_t count;
		struct signalfd_siginfo info;
		if (e.data.u64 == 1) {
			CHECK(read(event_fd, &count, 8) == 8);
			events += count;
		} else if (e.data.u64 == 2) {
			CHECK(read(timer_fd, &count, 8) == 8);
			alarms += count;
		} else if (e.data.u64 == 3) {
			CHECK(read(signal_fd, &info, sizeof info) == sizeof info);
			CHECK(info.ssi_signo == SIGUSR2);
			signals_read++;
		} else if (e.data.u64 == 4) {
			int c = accept(listen_fd, 0, 0);
			CHECK(c >= 0);
			CHECK(write(c, "hello\n", 6) == 6);
			close(c);
		} else {
			say("BAD epoll data %lx\n", (long)e.data.u64);
		}
	}
}

static volatile int usr1;
static void on_usr1(int s)
{
	(void)s;
	usr1++;
}

static void add(int fd, uint64_t data)
{
	struct epoll_event e = { .events = EPOLLIN, .data.u64 = data };
	CHECK(epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &e) == 0);
}

static void save_actions(const char *dir)
{
	char path[256];
	unsigned long action[4];
	snprintf(path, sizeof path, "%s/sigactions", dir);
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
	for (int s = 1; s <= 64; s++) {
		memset(action, 0, sizeof action);
		syscall(SYS_rt_sigaction, s, 0, action, 8);
		CHECK(write(fd, action, sizeof action) == sizeof action);
	}
	close(fd);
}

int main(int argc, char **argv)
{
	char path[256];
	pthread_t t;
	(void)argc;
	close_range(3, ~0u, 0); /* what the test runner left open */
	snprintf(path, sizeof path, "%s/log", argv[1]);
	logfd = open(path, O_WRONLY | O_CREAT | O_APPEND, 0600);
	if (logfd < 0)
		return 1;
	signal(SIGUSR1, on_usr1);
	sigset_t two;
	sigemptyset(&two);
	sigaddset(&two, SIGUSR2);
	pthread_sigmask(SIG_BLOCK, &two, 0);
	save_actions(argv[1]);

	CHECK(pipe(pipe_ends) == 0);
	event_fd = eventfd(0, EFD_CLOEXEC);
	timer_fd = timerfd_create(CLOCK_MONOTONIC, 0);
	struct itimerspec every = { { 0, 20000000 }, { 0, 20000000 } };
	timerfd_settime(timer_fd, 0, &every, 0);
	signal_fd = signalfd(-1, &two, SFD_NONBLOCK);
	listen_fd = socket(AF_UNIX, SOCK_STREAM, 0);
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	snprintf(a.sun_path, sizeof a.sun_path, "%s/socket", argv[1]);
	unlink(a.sun_path);
	CHECK(bind(listen_fd, (void *)&a, sizeof a) == 0);
	CHECK(listen(listen_fd, 5) == 0);
	/* A number far away, and a hole. */
	CHECK(dup2(listen_fd, 100) == 100);
	close(listen_fd);
	listen_fd = 100;
	epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	add(event_fd, 1);
	add(timer_fd, 2);
	add(signal_fd, 3);
	add(listen_fd, 4);

	snprintf(path, sizeof path, "%s/positioned", argv[1]);
	int positioned = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
	CHECK(write(positioned, "0123456789", 10) == 10);
	lseek(positioned, 0, SEEK_SET);
	char two_bytes[2];
	CHECK(read(positioned, two_bytes, 2) == 2);
	struct flock l = { .l_type = F_WRLCK, .l_start = 3, .l_len = 4 };
	CHECK(fcntl(positioned, F_OFD_SETLK, &l) == 0);

	big = mmap(0, BIG, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	madvise(big, BIG, MADV_HUGEPAGE);
	madvise(big, BIG, MADV_DONTFORK);
	for (unsigned long i = 0; i < BIG; i += 4096)
		if (i % 3 != 0)
			*(unsigned long *)(big + i) = i * 7919;
	mprotect(big + 4096, 4096, PROT_READ);
	shared = mmap(0, 1 << 16, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	strcpy((char *)shared + 5000, "shared");
	int memfd = memfd_create("some memory", MFD_CLOEXEC);
	CHECK(ftruncate(memfd, 1 << 16) == 0);
	memfd_map = mmap(0, 1 << 16, PROT_READ | PROT_WRITE, MAP_SHARED, memfd, 0);
	memfd_map[12345] = 77;

	void *(*bodies[])(void *) = { spin, sleeper, reader, waiter };
	for (unsigned i = 0; i < 4; i++)
		CHECK(pthread_create(&t, 0, bodies[i], 0) == 0);

	unsigned long tick = 0, events_then, alarms_then;
	for (;;) {
		events_then = events;
		alarms_then = alarms;
		tick++;
		CHECK(write(pipe_ends[1], "x", 1) == 1);
		pthread_mutex_lock(&lock);
		wanted++;
		pthread_cond_signal(&go);
		pthread_mutex_unlock(&lock);
		kill(getpid(), SIGUSR2);
		raise(SIGUSR1);
		struct timespec nap = { 0, 25000000 };
		clock_nanosleep(CLOCK_MONOTONIC, 0, &nap, 0);

		for (int i = 0; i < 200 && (events == events_then || alarms == alarms_then); i++)
			usleep(10000);
		CHECK(events > events_then);
		CHECK(alarms > alarms_then);
		CHECK(usr1 == (int)tick);
		CHECK(signals_read > 0);
		CHECK(mine == 0x1122334455667788);
		for (unsigned long i = 0; i < BIG; i += 4096)
			CHECK(*(unsigned long *)(big + i) == (i % 3 ? i * 7919 : 0));
		CHECK(strcmp((char *)shared + 5000, "shared") == 0);
		CHECK(memfd_map[12345] == 77);
		unsigned char there = 0;
		CHECK(pread(memfd, &there, 1, 12345) == 1 && there == 77);
		CHECK(lseek(positioned, 0, SEEK_CUR) == 2);
		void *p = malloc(100000);
		CHECK(p != 0);
		memset(p, 1, 100000);
		free(p);
		char here[16];
		CHECK(syscall(SYS_getcwd, here, sizeof here) > 0 && strcmp(here, "/") == 0);
		say("tick %lu pid %d mono %lu spins %lu sleeps %lu events %lu alarms %lu\n", tick,
		    (int)syscall(SYS_getpid), now(), spins, sleeps, events, alarms);
	}
}

/* One of everything that a process may hold, and a thread in every way in
 * which one may wait. It says what it made, one fact a line:
 *     NAME NUMBER...
 * descriptors in decimal, addresses in hexadecimal. As PID 1 it first makes
 * itself a home; then a child of it is the zoo. "READY" is the last line.
 *
 * tests/task_zoo.rs boots it, takes a dump of it, and looks for all of it.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/futex.h>
#include <linux/io_uring.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096
#define CHECK(x) do { if ((long)(x) < 0) printf("failed %s\n", #x); } while (0)

static int idle[2];
static int word = 5;

static void handler(int signal, siginfo_t *info, void *context)
{
	(void)signal, (void)info, (void)context;
}

static void called(const char *name)
{
	prctl(PR_SET_NAME, name);
	printf("thread-%s %ld\n", name, syscall(SYS_gettid));
}

static void block(int signal)
{
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, signal);
	pthread_sigmask(SIG_SETMASK, &set, NULL);
}

static void *sleeper(void *unused)
{
	called("sleeper");
	struct timespec end;
	clock_gettime(CLOCK_MONOTONIC, &end);
	end.tv_sec += 5000;
	for (;;)
		clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &end, NULL);
	return unused;
}

static void *waiter(void *unused)
{
	called("waiter");
	for (;;)
		syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 5, NULL, NULL, 0);
	return unused;
}

static void *reader(void *unused)
{
	called("reader");
	char c;
	for (;;)
		if (read(idle[0], &c, 1) < 0)
			continue;
	return unused;
}

/* vfork, whose child neither executes nor ends. */
static void *parent(void *unused)
{
	called("parent");
	long child = syscall(SYS_vfork);
	if (child == 0)
		for (;;)
			syscall(SYS_pause);
	return unused;
}

/* Its own mask is SIGUSR1; that of the wait is SIGUSR2. */
static void *suspended(void *unused)
{
	called("suspended");
	block(SIGUSR1);
	sigset_t other;
	sigemptyset(&other);
	sigaddset(&other, SIGUSR2);
	for (;;)
		sigsuspend(&other);
	return unused;
}

/* Its own mask is SIGHUP, for which it waits. */
static void *expecting(void *unused)
{
	called("expecting");
	block(SIGHUP);
	sigset_t hup;
	sigemptyset(&hup);
	sigaddset(&hup, SIGHUP);
	for (;;)
		sigwaitinfo(&hup, NULL);
	return unused;
}

/* Its own mask is SIGWINCH; that of the wait is SIGURG. */
static void *poller(void *unused)
{
	called("poller");
	block(SIGWINCH);
	sigset_t other;
	sigemptyset(&other);
	sigaddset(&other, SIGURG);
	struct pollfd idler = {idle[0], POLLIN, 0};
	for (;;)
		ppoll(&idler, 1, NULL, &other);
	return unused;
}

/* The process is stopped and continued: this becomes restart_syscall. */
static void *restarted(void *unused)
{
	called("restarted");
	block(SIGCONT);
	struct pollfd idler = {idle[0], POLLIN, 0};
	for (;;)
		poll(&idler, 1, 500000);
	return unused;
}

/* Known registers, asleep in a call. */
static void *marked(void *unused)
{
	called("marked");
	block(SIGCONT);
	static struct timespec long_time = {9000, 0};
	__asm__ volatile("movq $0x0123456789abcdef, %%rax\n\tmovq %%rax, %%xmm9\n\t"
			 "movq $0x5151515151515151, %%r14\n\tmovl $35, %%eax\n\tsyscall"
			 :: "D"(&long_time), "S"(0) : "rax", "rcx", "r11", "r14", "memory");
	return unused;
}

/* Known registers, in user mode for ever. */
static void *spinner(void *unused)
{
	called("spinner");
	__asm__ volatile("movq $0x1122334455667788, %%r15\n1:\tincq %%rbx\n\tjmp 1b"
			 ::: "rbx", "r15");
	return unused;
}

static void *filtered(void *unused)
{
	called("filtered");
	prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
	struct sock_filter all[] = {{0x06, 0, 0, 0x7fff0000}};
	struct sock_filter look[] = {{0x20, 0, 0, 0}, {0x06, 0, 0, 0x7fff0000}};
	struct sock_fprog first = {1, all}, second = {2, look};
	CHECK(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &first));
	CHECK(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &second));
	for (;;)
		pause();
	return unused;
}

static void *other_user(void *unused)
{
	called("other_user");
	gid_t groups[] = {10, 20, 30};
	syscall(SYS_setgroups, 3, groups);
	syscall(SYS_setresgid, 100, 101, 102);
	syscall(SYS_setresuid, 0, 1001, 1002);
	setpriority(PRIO_PROCESS, syscall(SYS_gettid), 7);
	for (;;)
		pause();
	return unused;
}

static void *real_time(void *unused)
{
	called("real_time");
	struct sched_param priority = {.sched_priority = 3};
	CHECK(sched_setscheduler(0, SCHED_FIFO, &priority));
	cpu_set_t one;
	CPU_ZERO(&one);
	CPU_SET(1, &one);
	CHECK(sched_setaffinity(0, sizeof one, &one));
	for (;;)
		pause();
	return unused;
}

static void *queued(void *unused)
{
	called("queued");
	int signal = SIGRTMIN + 3;
	block(signal);
	union sigval value = {.sival_int = 0x1234};
	pthread_sigqueue(pthread_self(), signal, value);
	value.sival_int = 0x5678;
	pthread_sigqueue(pthread_self(), signal, value);
	stack_t stack = {.ss_sp = malloc(16384), .ss_size = 16384};
	sigaltstack(&stack, NULL);
	printf("queued-signal %d\naltstack %p\n", signal, stack.ss_sp);
	sigset_t all;
	sigfillset(&all);
	for (;;)
		sigsuspend(&all);
	return unused;
}

static void start(void *(*how)(void *))
{
	pthread_t thread;
	pthread_create(&thread, NULL, how, NULL);
	usleep(20000);
}

static void descriptors(void)
{
	CHECK(pipe2(idle, O_CLOEXEC));
	printf("idle %d %d\n", idle[0], idle[1]);
	int ends[2];
	CHECK(pipe(ends));
	CHECK(fcntl(ends[1], F_SETPIPE_SZ, 131072));
	CHECK(write(ends[1], "hello pipe", 10));
	CHECK(write(ends[1], " again", 6));
	printf("pipe %d %d\n", ends[0], ends[1]);
	CHECK(mkfifo("/tmp/fifo", 0600));
	int fifo = open("/tmp/fifo", O_RDWR);
	CHECK(write(fifo, "ff", 2));
	printf("fifo %d\n", fifo);
	printf("eventfd %d\n", eventfd(7, EFD_SEMAPHORE | EFD_NONBLOCK));
	int timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC);
	struct itimerspec far = {{5, 0}, {3000, 0}};
	CHECK(timerfd_settime(timer, 0, &far, NULL));
	printf("timerfd %d\n", timer);
	int expired = timerfd_create(CLOCK_REALTIME, 0);
	struct itimerspec soon = {{0, 100000000}, {0, 50000000}};
	CHECK(timerfd_settime(expired, 0, &soon, NULL));
	printf("timerfd-expired %d\n", expired);
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	sigaddset(&set, SIGTERM);
	printf("signalfd %d\n", signalfd(-1, &set, 0));
	int epoll = epoll_create1(0);
	struct epoll_event edge = {EPOLLIN | EPOLLET, {.u64 = 0xdeadbeefcafe}};
	struct epoll_event once = {EPOLLOUT | EPOLLONESHOT, {.u64 = 0x77}};
	CHECK(epoll_ctl(epoll, EPOLL_CTL_ADD, idle[0], &edge));
	CHECK(epoll_ctl(epoll, EPOLL_CTL_ADD, timer, &once));
	printf("epoll %d\n", epoll);
	int listener = socket(AF_UNIX, SOCK_STREAM, 0);
	struct sockaddr_un path = {AF_UNIX, "/tmp/zoo.sock"};
	CHECK(bind(listener, (void *)&path, sizeof path));
	CHECK(listen(listener, 9));
	printf("listener %d\n", listener);
	int bound = socket(AF_UNIX, SOCK_SEQPACKET, 0);
	struct sockaddr_un abstract = {AF_UNIX, "\0zoo"};
	CHECK(bind(bound, (void *)&abstract, 2 + 4));
	printf("abstract %d\n", bound);
	int pair[2];
	CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
	printf("socketpair %d %d\n", pair[0], pair[1]);
	int file = open("/tmp/file", O_RDWR | O_CREAT | O_APPEND, 0644);
	CHECK(write(file, "0123456789", 10));
	CHECK(lseek(file, 4, SEEK_SET));
	struct flock own = {F_WRLCK, SEEK_SET, 2, 3, 0}, open_file = {F_RDLCK, SEEK_SET, 100, 0, 0};
	CHECK(fcntl(file, F_SETLK, &own));
	CHECK(fcntl(file, F_OFD_SETLK, &open_file));
	CHECK(flock(file, LOCK_EX));
	CHECK(fcntl(file, F_SETOWN, getpid()));
	CHECK(fcntl(file, F_SETSIG, SIGRTMIN));
	printf("file %d %d\n", file, dup(file));
	int deleted = open("/tmp/deleted", O_RDWR | O_CREAT, 0644);
	CHECK(write(deleted, "deleted!", 8));
	CHECK(unlink("/tmp/deleted"));
	printf("deleted %d\n", deleted);
	printf("directory %d\n", open("/tmp", O_RDONLY | O_DIRECTORY));
	printf("random %d\n", open("/dev/urandom", O_RDONLY));
	int master = posix_openpt(O_RDWR | O_NOCTTY);
	CHECK(unlockpt(master));
	printf("terminal %d %d\n", master, open(ptsname(master), O_RDWR | O_NOCTTY));
}

/* What watches have told and what not; what nobody has read. */
static void edges(void)
{
	int epoll = epoll_create1(0), told = eventfd(1, 0), untold = eventfd(1, 0), fired = eventfd(1, 0);
	struct epoll_event events[3] = {
		{EPOLLIN | EPOLLET, {.u64 = 1}},
		{EPOLLIN | EPOLLET, {.u64 = 2}},
		{EPOLLIN | EPOLLONESHOT, {.u64 = 3}},
	}, got[3];
	CHECK(epoll_ctl(epoll, EPOLL_CTL_ADD, told, &events[0]));
	CHECK(epoll_ctl(epoll, EPOLL_CTL_ADD, fired, &events[2]));
	CHECK(epoll_wait(epoll, got, 3, 0) - 2);
	CHECK(epoll_ctl(epoll, EPOLL_CTL_ADD, untold, &events[1]));
	printf("edges %d\n", epoll);
}

static void messages(void)
{
	int stream[2], packets[2], parcel[2], inside = eventfd(77, 0);
	static char much[100000];
	memset(much, 'z', sizeof much);
	CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, stream));
	CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, packets));
	CHECK(socketpair(AF_UNIX, SOCK_DGRAM, 0, parcel));
	CHECK(write(stream[0], "half-read", 9) - 9);
	CHECK(read(stream[1], much, 5) - 5);
	memset(much, 'z', sizeof much);
	CHECK(write(stream[0], much, sizeof much) - (long)sizeof much);
	CHECK(shutdown(stream[0], SHUT_WR));
	CHECK(write(packets[0], "one", 3) - 3);
	CHECK(send(packets[0], "", 0, 0));
	CHECK(write(packets[0], "three", 5) - 5);
	union {
		struct cmsghdr head;
		char bytes[CMSG_SPACE(sizeof(int))];
	} control = {.head = {CMSG_LEN(sizeof(int)), SOL_SOCKET, SCM_RIGHTS}};
	memcpy(CMSG_DATA(&control.head), &inside, sizeof inside);
	struct iovec part = {"parcel", 6};
	struct msghdr message = {NULL, 0, &part, 1, &control, CMSG_LEN(sizeof(int)), 0};
	CHECK(sendmsg(parcel[0], &message, 0) - 6);
	close(inside);
	printf("unread %d %d %d %d\n", stream[0], stream[1], packets[1], parcel[1]);
}

/* A ring with one request that a kernel thread waits with for ever. */
static void ring(void)
{
	struct io_uring_params params = {0};
	int fd = syscall(SYS_io_uring_setup, 8, &params), ends[2];
	static char nothing[8];
	if (fd < 0)
		return; /* this kernel has none */
	char *rings = mmap(NULL, params.sq_off.array + 8 * 4, PROT_READ | PROT_WRITE, MAP_SHARED, fd,
			   IORING_OFF_SQ_RING);
	struct io_uring_sqe *entries = mmap(NULL, 8 * sizeof *entries, PROT_READ | PROT_WRITE,
					    MAP_SHARED, fd, IORING_OFF_SQES);
	CHECK(pipe(ends));
	entries[0] = (struct io_uring_sqe){.opcode = IORING_OP_READ,
					   .flags = IOSQE_ASYNC,
					   .fd = ends[0],
					   .addr = (unsigned long)nothing,
					   .len = 8};
	*(unsigned *)(rings + params.sq_off.array) = 0;
	__atomic_store_n((unsigned *)(rings + params.sq_off.tail), 1, __ATOMIC_RELEASE);
	CHECK(syscall(SYS_io_uring_enter, fd, 1, 0, 0, NULL, 0) - 1);
	printf("ring %d\n", fd);
}

static void memories(void)
{
	int memfd = memfd_create("zoomem", MFD_ALLOW_SEALING);
	CHECK(ftruncate(memfd, 5 * PAGE));
	CHECK(pwrite(memfd, "page0", 5, 0));
	CHECK(pwrite(memfd, "page3", 5, 3 * PAGE));
	CHECK(fcntl(memfd, F_ADD_SEALS, F_SEAL_GROW));
	printf("memfd %d\nmemfd-map %p\n", memfd,
	       mmap(NULL, 5 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, memfd, 0));
	char *shared = mmap(NULL, 3 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	strcpy(shared + PAGE, "shared anonymous");
	printf("shared-map %p\n", (void *)shared);
	size_t big = 6 << 20;
	char *huge = mmap(NULL, big, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	madvise(huge, big, MADV_HUGEPAGE);
	memset(huge, 0x5a, big);
	printf("huge-map %p\n", (void *)huge);
	/* Page 1 is its own, pages 0 and 2 are the file's. */
	int self = open("/proc/self/exe", O_RDONLY);
	volatile char *copy = mmap(NULL, 3 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, self, 0);
	copy[PAGE] = 'X';
	(void)(copy[0] + copy[2 * PAGE]);
	printf("copy-map %p\n", (void *)copy);
	/* Page 0 was only read, page 2 was written. */
	volatile char *touched = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE,
				      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	(void)touched[0];
	touched[2 * PAGE] = 'T';
	printf("touched-map %p\n", (void *)touched);
	int gone = open("/tmp/gone", O_RDWR | O_CREAT, 0644);
	CHECK(ftruncate(gone, 2 * PAGE));
	CHECK(pwrite(gone, "from the file", 13, PAGE));
	char *orphan = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, gone, 0);
	strcpy(orphan, "its own");
	CHECK(close(gone));
	CHECK(unlink("/tmp/gone"));
	printf("orphan-map %p\n", (void *)orphan);
}

static void process(void)
{
	setsid();
	CHECK(chdir("/tmp"));
	umask(027);
	struct rlimit files = {1234, 4096};
	setrlimit(RLIMIT_NOFILE, &files);
	struct sigaction action = {.sa_flags = SA_SIGINFO | SA_RESTART};
	action.sa_sigaction = handler;
	sigaddset(&action.sa_mask, SIGINT);
	sigaction(SIGUSR2, &action, NULL);
	sigaction(SIGCONT, &action, NULL);
	signal(SIGPIPE, SIG_IGN);
	printf("handler %p\n", (void *)handler);
	struct itimerval alarm = {{3, 0}, {2777, 0}};
	setitimer(ITIMER_REAL, &alarm, NULL);
	struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN + 1};
	event.sigev_value.sival_int = 0x4242;
	timer_t timer;
	CHECK(timer_create(CLOCK_MONOTONIC, &event, &timer));
	struct itimerspec period = {{2, 0}, {2555, 0}};
	CHECK(timer_settime(timer, 0, &period, NULL));
	printf("posix-timer %d\n", SIGRTMIN + 1);
}

static void home(void)
{
	CHECK(mount("proc", "/proc", "proc", 0, NULL));
	CHECK(mount("tmp", "/tmp", "tmpfs", 0, NULL));
	CHECK(mount("dev", "/dev", "devtmpfs", 0, NULL));
	mkdir("/dev/pts", 0755);
	CHECK(mount("pts", "/dev/pts", "devpts", 0, NULL));
}

int main(void)
{
	setvbuf(stdout, NULL, _IOLBF, 0);
	if (getpid() == 1) {
		home();
		if (fork() != 0)
			for (;;)
				pause();
	}
	printf("\nzoo %d\n", getpid());
	process();
	descriptors();
	edges();
	messages();
	ring();
	memories();
	void *(*threads[])(void *) = {
		sleeper, waiter, reader, parent, suspended, expecting, poller, restarted,
		marked, filtered, other_user, real_time, queued,
	};
	for (size_t i = 0; i < sizeof threads / sizeof *threads; i++)
		start(threads[i]);
	/* Stopped and continued by a child, which then holds what it inherited. */
	if (fork() == 0) {
		pid_t zoo = getppid();
		usleep(300000);
		kill(zoo, SIGSTOP);
		usleep(300000);
		kill(zoo, SIGCONT);
		usleep(300000);
		printf("READY\n");
		for (;;)
			pause();
	}
	start(spinner);
	for (;;)
		pause();
}

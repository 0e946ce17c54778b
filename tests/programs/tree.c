// Sets of processes, each judged by what it writes to its directory itself.
//
//   tree numbers|double|log DIR COUNT   three parts of a pipeline
//   tree family DIR COUNT               children, zombies, shared memory, one file offset
//   tree prefork DIR                    a listener, and workers that accept
//   tree orphans DIR COUNT              a session whose leader is dead, adopted by a subreaper
//   tree terminal DIR                   a shell with a job on a pseudo-terminal
//   tree pairs DIR COUNT                a UNIX pair, an eventfd and an epoll instance over fork
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

static const char *dir;

static void say(const char *file, const char *format, ...)
{
	char path[4096], line[512];
	va_list args;
	snprintf(path, sizeof path, "%s/%s", dir, file);
	va_start(args, format);
	int len = vsnprintf(line, sizeof line, format, args);
	va_end(args);
	int fd = open(path, O_WRONLY | O_CREAT | O_APPEND, 0644);
	if (fd < 0 || write(fd, line, len) != len)
		_exit(99);
	close(fd);
}

static void nap(void)
{
	struct timespec t = { 0, 5000000 };
	nanosleep(&t, NULL);
}

static int told(const char *file)
{
	char path[4096];
	struct stat st;
	snprintf(path, sizeof path, "%s/%s", dir, file);
	return stat(path, &st) == 0;
}

#define CHECK(what) \
	do { \
		if (!(what)) { \
			say("log", "BAD line %d: %s (errno %d)\n", __LINE__, #what, errno); \
			_exit(98); \
		} \
	} while (0)

static int numbers(long count)
{
	for (long i = 1; i <= count; i++) {
		char line[32];
		int len = snprintf(line, sizeof line, "%ld\n", i);
		CHECK(write(1, line, len) == len);
		nap();
	}
	return 0;
}

static int twice(void)
{
	long n;
	setvbuf(stdout, NULL, _IOLBF, 0);
	while (scanf("%ld", &n) == 1)
		printf("%ld\n", 2 * n);
	return 0;
}

static int logged(void)
{
	long n, next = 2;
	char path[4096];
	snprintf(path, sizeof path, "%s/log", dir);
	// Not O_APPEND: a write that is made again goes to the same place.
	int log = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0644);
	while (scanf("%ld", &n) == 1) {
		CHECK(n == next);
		next += 2;
		CHECK(dprintf(log, "%ld\n", n) > 0);
	}
	return 7;
}

struct shared {
	pthread_mutex_t mutex;
	pthread_cond_t changed;
	long count;
	long by[3];
};

static int family(long count)
{
	struct shared *s =
		mmap(NULL, 1 << 16, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	pthread_mutexattr_t m;
	pthread_condattr_t c;
	pthread_mutexattr_init(&m);
	pthread_mutexattr_setpshared(&m, PTHREAD_PROCESS_SHARED);
	pthread_mutex_init(&s->mutex, &m);
	pthread_condattr_init(&c);
	pthread_condattr_setpshared(&c, PTHREAD_PROCESS_SHARED);
	pthread_cond_init(&s->changed, &c);
	// One offset for all, and no O_APPEND: who has another one overwrites.
	char path[4096];
	snprintf(path, sizeof path, "%s/records", dir);
	int records = open(path, O_RDWR | O_CREAT | O_TRUNC, 0644);
	pid_t kids[3], exited, killed;
	prctl(PR_SET_CHILD_SUBREAPER, 1);
	if ((exited = fork()) == 0)
		_exit(42);
	if ((killed = fork()) == 0) {
		signal(SIGTERM, SIG_DFL);
		raise(SIGTERM);
	}
	for (int i = 0; i < 3; i++) {
		if ((kids[i] = fork()) == 0) {
			prctl(PR_SET_PDEATHSIG, SIGHUP);
			if (i == 1)
				setpgid(0, 0);
			if (i == 2)
				setsid();
			pid_t sid = getsid(0), group = getpgrp(), parent = getppid();
			for (;;) {
				pthread_mutex_lock(&s->mutex);
				if (s->count >= count) {
					pthread_mutex_unlock(&s->mutex);
					pause();
					continue;
				}
				s->count++;
				s->by[i]++;
				char line[32];
				int len = snprintf(line, sizeof line, "%08ld\n", s->count);
				CHECK(write(records, line, len) == len);
				pthread_cond_broadcast(&s->changed);
				pthread_mutex_unlock(&s->mutex);
				CHECK(getsid(0) == sid && getpgrp() == group && getppid() == parent);
				int told = 0;
				CHECK(prctl(PR_GET_PDEATHSIG, &told) == 0 && told == SIGHUP);
				nap();
			}
		}
	}
	pid_t sid = getsid(0), group = getpgrp();
	siginfo_t info;
	CHECK(waitid(P_PID, exited, &info, WEXITED | WNOWAIT) == 0);
	CHECK(waitid(P_PID, killed, &info, WEXITED | WNOWAIT) == 0);
	pthread_mutex_lock(&s->mutex);
	while (s->count < count) {
		long before = s->count;
		pthread_cond_wait(&s->changed, &s->mutex);
		if (s->count / 20 != before / 20)
			say("log", "tick %ld pid %d\n", s->count, getpid());
	}
	pthread_mutex_unlock(&s->mutex);
	CHECK(getsid(0) == sid && getpgrp() == group);
	// The dead are still there, each with its own end.
	CHECK(waitid(P_PID, exited, &info, WEXITED) == 0);
	CHECK(info.si_code == CLD_EXITED && info.si_status == 42 && info.si_pid == exited);
	CHECK(waitid(P_PID, killed, &info, WEXITED) == 0);
	CHECK(info.si_code == CLD_KILLED && info.si_status == SIGTERM);
	// The living are children, in their groups and sessions.
	CHECK(getpgid(kids[0]) == group && getpgid(kids[1]) == kids[1] && getsid(kids[2]) == kids[2]);
	CHECK(getsid(kids[1]) == sid);
	for (int i = 0; i < 3; i++) {
		int status;
		CHECK(kill(kids[i], SIGTERM) == 0);
		CHECK(waitpid(kids[i], &status, 0) == kids[i]);
		CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGTERM);
		say("log", "child %d did %ld\n", i, s->by[i]);
	}
	CHECK(wait(NULL) == -1 && errno == ECHILD);
	CHECK(lseek(records, 0, SEEK_CUR) == 9 * count);
	say("log", "done\n");
	return 0;
}

static int worker(int listener)
{
	prctl(PR_SET_NAME, "worker");
	int epoll = epoll_create1(0);
	struct epoll_event event = { .events = EPOLLIN, .data.u64 = 5 };
	CHECK(epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &event) == 0);
	for (;;) {
		CHECK(epoll_wait(epoll, &event, 1, -1) == 1 || errno == EINTR);
		int fd = accept4(listener, NULL, NULL, 0);
		if (fd < 0)
			continue;
		dprintf(fd, "worker %d of %d\n", getpid(), getppid());
		close(fd);
	}
}

static int prefork(void)
{
	int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), one = 1;
	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
	struct sockaddr_in at = { .sin_family = AF_INET };
	at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	socklen_t len = sizeof at;
	CHECK(bind(listener, (void *)&at, sizeof at) == 0 && listen(listener, 7) == 0);
	getsockname(listener, (void *)&at, &len);
	say("port", "%d", ntohs(at.sin_port));
	for (int i = 0; i < 2; i++)
		if (fork() == 0)
			return worker(listener);
	for (long tick = 0;; tick++) {
		int status;
		pid_t ended = waitpid(-1, &status, WNOHANG);
		if (ended > 0) {
			say("log", "ended %d\n", ended);
			if (fork() == 0)
				return worker(listener);
		}
		say("log", "tick %ld pid %d\n", tick, getpid());
		nap();
	}
}

static int orphans(long count)
{
	prctl(PR_SET_CHILD_SUBREAPER, 1);
	pid_t leader = fork();
	if (leader == 0) {
		setsid();
		for (int i = 0; i < 2; i++) {
			if (fork() == 0) {
				// A job of its own group, whose leader is dead too.
				pid_t first = i == 1 ? fork() : -1;
				if (first == 0) {
					nap();
					nap();
					_exit(0);
				}
				if (first > 0) {
					setpgid(first, first);
					setpgid(0, first);
					waitpid(first, NULL, 0);
				}
				while (getppid() == getsid(0))
					nap();
				pid_t sid = getsid(0), group = getpgrp(), parent = getppid();
				for (long n = 0; n < count; n++) {
					CHECK(getsid(0) == sid && getpgrp() == group && getppid() == parent);
					say("log", "tick %ld of %d in %d %d below %d\n", n, i, sid, group, parent);
					nap();
				}
				_exit(10 + i);
			}
		}
		nap();
		nap();
		nap();
		_exit(0);
	}
	CHECK(waitpid(leader, NULL, 0) == leader);
	int left = 2, status;
	while (left) {
		pid_t ended = wait(&status);
		CHECK(ended > 0 && WIFEXITED(status));
		say("log", "ended with %d\n", WEXITSTATUS(status));
		left--;
	}
	say("log", "done\n");
	return 0;
}

static int terminal(void)
{
	int master = open("/dev/ptmx", O_RDWR | O_NOCTTY), number, zero = 0;
	ioctl(master, TIOCSPTLCK, &zero);
	ioctl(master, TIOCGPTN, &number);
	char name[32];
	snprintf(name, sizeof name, "/dev/pts/%d", number);
	if (fork() == 0) {
		setsid();
		int slave = open(name, O_RDWR);
		for (int i = 0; i < 3; i++)
			dup2(slave, i);
		close(slave);
		close(master);
		// A shell's background job ignores them, and so would all below.
		signal(SIGINT, SIG_DFL);
		signal(SIGQUIT, SIG_DFL);
		setenv("PS1", "$ ", 1);
		execlp("bash", "bash", "--norc", "--noprofile", "-i", (char *)NULL);
		_exit(97);
	}
	fcntl(master, F_SETFL, O_NONBLOCK);
	const char *lines[] = { "sleep 1000 & cat\n", NULL };
	CHECK(write(master, lines[0], strlen(lines[0])) > 0);
	for (int step = 0; step < 100000; step++) {
		char text[4096];
		ssize_t got = read(master, text, sizeof text - 1);
		if (got > 0) {
			text[got] = 0;
			say("output", "%s", text);
		}
		if (got < 0 && errno == EIO) {
			int status;
			CHECK(wait(&status) > 0);
			say("log", "shell ended with %d\n", WEXITSTATUS(status));
			return 0;
		}
		char file[32];
		static int next;
		snprintf(file, sizeof file, "type%d", next);
		if (told(file)) {
			char path[4096], keys[256];
			snprintf(path, sizeof path, "%s/%s", dir, file);
			int fd = open(path, O_RDONLY);
			ssize_t len = read(fd, keys, sizeof keys);
			close(fd);
			if (len > 0) {
				CHECK(write(master, keys, len) == len);
				next++;
			}
		}
		nap();
	}
	return 1;
}

static int pairs(long count)
{
	int pair[2], event = eventfd(0, EFD_NONBLOCK | EFD_SEMAPHORE), epoll = epoll_create1(0);
	CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
	struct epoll_event watch = { .events = EPOLLIN, .data.u64 = 77 };
	CHECK(epoll_ctl(epoll, EPOLL_CTL_ADD, event, &watch) == 0);
	if (fork() == 0) {
		close(pair[0]);
		for (long n = 0; n < count; n++) {
			char line[32];
			uint64_t one = 1;
			snprintf(line, sizeof line, "%015ld\n", n);
			CHECK(write(pair[1], line, 16) == 16);
			CHECK(write(event, &one, 8) == 8);
			nap();
		}
		_exit(5);
	}
	close(pair[1]);
	// Behind by some, so that there is something in the queue.
	for (int i = 0; i < 10; i++)
		nap();
	for (long n = 0; n < count; n++) {
		struct epoll_event got;
		uint64_t one;
		char line[16];
		int ready;
		while ((ready = epoll_wait(epoll, &got, 1, -1)) < 0 && errno == EINTR)
			;
		CHECK(ready == 1 && got.data.u64 == 77 && read(event, &one, 8) == 8 && one == 1);
		CHECK(read(pair[0], line, 16) == 16 && atol(line) == n);
		say("log", "tick %ld pid %d\n", n, getpid());
		nap();
	}
	char more;
	CHECK(read(pair[0], &more, 1) == 0);
	int status;
	CHECK(wait(&status) > 0 && WEXITSTATUS(status) == 5);
	say("log", "done\n");
	return 0;
}

int main(int argc, char **argv)
{
	if (argc < 3)
		return 96;
	dir = argv[2];
	long count = argc > 3 ? atol(argv[3]) : 0;
	if (!strcmp(argv[1], "numbers"))
		return numbers(count);
	if (!strcmp(argv[1], "double"))
		return twice();
	if (!strcmp(argv[1], "log"))
		return logged();
	if (!strcmp(argv[1], "family"))
		return family(count);
	if (!strcmp(argv[1], "prefork"))
		return prefork();
	if (!strcmp(argv[1], "orphans"))
		return orphans(count);
	if (!strcmp(argv[1], "terminal"))
		return terminal();
	if (!strcmp(argv[1], "pairs"))
		return pairs(count);
	return 95;
}

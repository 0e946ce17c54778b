/* Holds what VMMs hold, and looks every 20 ms whether all of it is as it must
 * be. What would show only once waits until the file "go" is there. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

static int log_fd;
static volatile uint64_t spins;

static void say(const char *text) {
	if (write(log_fd, text, strlen(text)) < 0)
		_exit(3);
}

#define CHECK(condition)                                                       \
	do {                                                                   \
		if (!(condition)) {                                            \
			char text[200];                                        \
			snprintf(text, sizeof text, "BAD line %d: %s (errno %d)\n", \
				 __LINE__, #condition, errno);                 \
			say(text);                                             \
		}                                                              \
	} while (0)

static uint64_t now(void) {
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000ull + t.tv_nsec;
}

/* One call fails with an error number that no kernel would give. */
static void forbid(int number, int with) {
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, number, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | with),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = {sizeof code / sizeof *code, code};
	prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
	CHECK(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program) == 0);
}

static int refused(int number) {
	errno = 0;
	return syscall(number) == -1 ? errno : 0;
}

static void look(int filters) {
	CHECK(refused(SYS_getppid) == (filters > 0 ? 18 : 0));
	CHECK(refused(SYS_getpgrp) == (filters > 1 ? 118 : 0));
	CHECK(prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == (filters > 0));
}

static void *guarded(void *argument) {
	int filters = (int)(intptr_t)argument;
	prctl(PR_SET_NAME, filters > 1 ? "two" : "one");
	forbid(SYS_getppid, 18);
	if (filters > 1)
		forbid(SYS_getpgrp, 118);
	for (;;) {
		look(filters);
		spins++;
		usleep(5000);
	}
	return NULL;
}

struct timer {
	int fd;
	uint64_t origin, interval, ticks;
};

static struct timer timer(uint64_t interval) {
	struct timer t = {timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK), now() + interval, interval, 0};
	struct itimerspec value = {
		{interval / 1000000000, interval % 1000000000},
		{t.origin / 1000000000, t.origin % 1000000000},
	};
	CHECK(timerfd_settime(t.fd, TFD_TIMER_ABSTIME, &value, NULL) == 0);
	return t;
}

static uint64_t due(struct timer *t, uint64_t at) {
	return at < t->origin ? 0 : (at - t->origin) / t->interval + 1;
}

/* Procfs does not say when a timer ran out that nobody has read since. */
static void note(struct timer *t) {
	static int fd = -1;
	if (fd < 0)
		fd = open("timers", O_RDWR | O_CREAT, 0644);
	uint64_t words[4] = {t->fd, t->origin, t->interval, t->ticks};
	CHECK(pwrite(fd, words, sizeof words, t->fd * sizeof words) == sizeof words);
}

/* As many ticks as the clock says. */
static void take(struct timer *t) {
	uint64_t n = 0, before = now() - t->interval / 2;
	if (read(t->fd, &n, 8) == 8)
		t->ticks += n;
	note(t);
	CHECK(t->ticks >= due(t, before) && t->ticks <= due(t, now()));
}

static void watch(int epoll, int fd, uint32_t events, uint64_t data, int how) {
	struct epoll_event event = {events, {.u64 = data}};
	CHECK(epoll_ctl(epoll, how, fd, &event) == 0);
}

/* The data of what is ready, one bit for each. */
static uint64_t ready(int epoll) {
	struct epoll_event events[16];
	int n = epoll_wait(epoll, events, 16, 0);
	uint64_t set = 0;
	for (int i = 0; i < n; i++)
		set |= 1ull << events[i].data.u64;
	return set;
}

static size_t length_of(uint64_t number) {
	return number % 7 == 0 ? 100000 : 1 + number * 37 % 900;
}

static void put(int fd, uint64_t number) {
	static char packet[100000];
	memset(packet, (int)(number % 251), sizeof packet);
	CHECK(send(fd, packet, length_of(number), MSG_DONTWAIT) == (ssize_t)length_of(number));
}

static void get(int fd, uint64_t number) {
	static char packet[100001];
	ssize_t n = recv(fd, packet, sizeof packet, MSG_DONTWAIT);
	CHECK(n == (ssize_t)length_of(number));
	for (ssize_t i = 0; i < n; i++)
		if (packet[i] != (char)(number % 251)) {
			CHECK(!"the packet's content");
			return;
		}
}

static void post(int fd) {
	int inside = eventfd(77, EFD_NONBLOCK);
	union {
		struct cmsghdr head;
		char bytes[CMSG_SPACE(sizeof(int))];
	} control = {.head = {CMSG_LEN(sizeof(int)), SOL_SOCKET, SCM_RIGHTS}};
	memcpy(CMSG_DATA(&control.head), &inside, sizeof inside);
	struct iovec part = {"parcel", 6};
	struct msghdr message = {NULL, 0, &part, 1, &control, CMSG_LEN(sizeof(int)), 0};
	CHECK(sendmsg(fd, &message, 0) == 6);
	close(inside);
}

static void open_parcel(int fd) {
	char text[16], control[CMSG_SPACE(4 * sizeof(int))];
	struct iovec part = {text, sizeof text};
	struct msghdr message = {NULL, 0, &part, 1, control, sizeof control, 0};
	CHECK(recvmsg(fd, &message, MSG_DONTWAIT) == 6 && memcmp(text, "parcel", 6) == 0);
	struct cmsghdr *head = CMSG_FIRSTHDR(&message);
	CHECK(head != NULL && head->cmsg_type == SCM_RIGHTS);
	if (head == NULL)
		return;
	int inside;
	uint64_t count = 0;
	memcpy(&inside, CMSG_DATA(head), sizeof inside);
	CHECK(read(inside, &count, 8) == 8 && count == 77);
}

int main(int argc, char **argv) {
	close_range(3, ~0U, 0);
	if (argc < 2 || chdir(argv[1]) != 0)
		return 2;
	log_fd = open("log", O_WRONLY | O_CREAT | O_APPEND, 0644);
	pthread_t thread;
	pthread_create(&thread, NULL, guarded, (void *)1);
	pthread_create(&thread, NULL, guarded, (void *)2);

	int busy = epoll_create1(0), lazy = epoll_create1(0), inner = epoll_create1(0);
	int told = eventfd(1, EFD_NONBLOCK), waiting = eventfd(0, EFD_NONBLOCK);
	int once = eventfd(1, EFD_NONBLOCK);
	struct timer beat = timer(50000000), unread = timer(70000000);
	note(&beat);
	note(&unread);
	int stream[2], packets[2], parcel[2], widow[2], shut[2], fired[2];
	socketpair(AF_UNIX, SOCK_STREAM, 0, stream);
	socketpair(AF_UNIX, SOCK_SEQPACKET, 0, packets);
	socketpair(AF_UNIX, SOCK_DGRAM, 0, parcel);
	socketpair(AF_UNIX, SOCK_STREAM, 0, widow);
	socketpair(AF_UNIX, SOCK_STREAM, 0, shut);
	socketpair(AF_UNIX, SOCK_STREAM, 0, fired);

	/* 1: told, never to be told again. 2: an edge nobody has taken. */
	watch(lazy, told, EPOLLIN | EPOLLET, 1, EPOLL_CTL_ADD);
	CHECK(ready(lazy) == 1 << 1);
	CHECK(ready(lazy) == 0);
	watch(lazy, waiting, EPOLLIN | EPOLLET, 2, EPOLL_CTL_ADD);
	uint64_t one = 1;
	CHECK(write(waiting, &one, 8) == 8);
	/* 3: ready all the time, but asked for now and then. */
	watch(busy, once, EPOLLIN | EPOLLONESHOT, 3, EPOLL_CTL_ADD);
	/* 4: an instance in the other. 5: fired, and disarmed for good. */
	watch(inner, beat.fd, EPOLLIN, 0, EPOLL_CTL_ADD);
	watch(busy, inner, EPOLLIN, 4, EPOLL_CTL_ADD);
	watch(busy, fired[0], EPOLLOUT | EPOLLONESHOT, 5, EPOLL_CTL_ADD);
	CHECK(ready(busy) == (1 << 3 | 1 << 5));

	uint64_t sent = 0, got = 0, pieces = 0, eaten = 0;
	while (sent < 6)
		put(packets[0], sent++);
	char piece[8];
	while (pieces < 4) {
		memset(piece, (int)pieces++, sizeof piece);
		CHECK(write(stream[0], piece, 8) == 8);
	}
	/* A reader that has had a part of a piece. */
	CHECK(read(stream[1], piece, 3) == 3);
	post(parcel[0]);
	CHECK(write(widow[0], "last words", 10) == 10);
	close(widow[0]);
	CHECK(write(shut[0], "end", 3) == 3);
	shutdown(shut[0], SHUT_WR);

	int went = 0, armed = 0;
	for (uint64_t tick = 1;; tick++) {
		look(0);
		uint64_t set = ready(busy);
		CHECK((set & ~(1ull << 4)) == (armed ? 1ull << 3 : 0));
		armed = tick % 7 == 0;
		if (armed)
			watch(busy, once, EPOLLIN | EPOLLONESHOT, 3, EPOLL_CTL_MOD);
		if (set & 1 << 4)
			take(&beat);
		put(packets[0], sent++);
		get(packets[1], got++);
		memset(piece, (int)pieces++ % 100, sizeof piece);
		CHECK(write(stream[0], piece, 8) == 8);
		int kept = 0;
		CHECK(ioctl(stream[1], FIONREAD, &kept) == 0 && kept == 5 * 8 - 3);
		CHECK(read(stream[1], piece, 8) == 8);
		char want = (char)(eaten++ % 100);
		CHECK(piece[0] == want && piece[4] == want && piece[5] == (char)(eaten % 100));

		if (!went && access("go", F_OK) == 0) {
			went = 1;
			CHECK(ready(lazy) == 1 << 2);
			CHECK(ready(lazy) == 0);
			open_parcel(parcel[1]);
			char words[32];
			CHECK(read(widow[1], words, 32) == 10 && memcmp(words, "last words", 10) == 0);
			CHECK(read(widow[1], words, 32) == 0);
			CHECK(send(widow[1], "x", 1, MSG_NOSIGNAL) == -1 && errno == EPIPE);
			CHECK(read(shut[1], words, 32) == 3 && memcmp(words, "end", 3) == 0);
			CHECK(read(shut[1], words, 32) == 0);
			CHECK(send(shut[0], "x", 1, MSG_NOSIGNAL) == -1 && errno == EPIPE);
			CHECK(write(shut[1], "back", 4) == 4 && read(shut[0], words, 32) == 4);
			take(&unread);
			/* The disarmed watch stays so when its peer hangs up. */
			close(fired[1]);
			CHECK((ready(busy) & ~(1ull << 4 | 1ull << 3)) == 0);
			say("went\n");
		}
		char line[200];
		snprintf(line, sizeof line, "tick %llu pid %d mono %llu spins %llu\n",
			 (unsigned long long)tick, (int)getpid(), (unsigned long long)now(),
			 (unsigned long long)spins);
		say(line);
		usleep(20000);
	}
}

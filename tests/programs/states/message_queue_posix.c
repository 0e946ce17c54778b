/* POSIX message queues: messages of several priorities, attributes, two open files on one queue, a
 * signal that is to come with the next message, and a queue that was unlinked.
 * expect: exact
 * live: no: the test takes none */
#include "state.h"
#include <mqueue.h>
#define NAME "/vmrestore-state"
static mqd_t queue, again, removed;
static void caught(int signal) {}
static void make(void)
{
	struct mq_attr attr = { .mq_maxmsg = 7, .mq_msgsize = 5000 };
	static char big[5000];
	umask(0);
	queue = mq_open(NAME, O_RDWR | O_CREAT | O_EXCL, 0620, &attr);
	if (queue < 0)
		ABSENT("no POSIX message queues");
	again = MUST(mq_open(NAME, O_RDONLY | O_NONBLOCK));
	MUST(fchown(queue, 33, 44));
	MUST(mq_send(queue, "later", 5, 3));
	MUST(mq_send(queue, "first", 5, 30));
	MUST(mq_send(queue, "latest", 6, 3));
	fill(big, 5000, 8);
	MUST(mq_send(queue, big, 5000, 4));
	attr.mq_maxmsg = 2;
	removed = MUST(mq_open("/vmrestore-gone", O_RDWR | O_CREAT | O_EXCL, 0600, &attr));
	MUST(mq_unlink("/vmrestore-gone"));
	struct sigevent event = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR1 };
	event.sigev_value.sival_int = 77;
	signal(SIGUSR1, caught);
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	MUST(sigprocmask(SIG_BLOCK, &set, NULL));
	MUST(mq_notify(removed, &event));
}
static void check(void)
{
	static char got[5000], should[5000];
	struct mq_attr attr;
	struct stat info;
	unsigned priority;
	CHECK(mq_getattr(queue, &attr) == 0);
	CHECK(attr.mq_maxmsg == 7 && attr.mq_msgsize == 5000 && attr.mq_curmsgs == 4 && !attr.mq_flags);
	CHECK(mq_getattr(again, &attr) == 0 && attr.mq_flags == O_NONBLOCK);
	CHECK(fstat(queue, &info) == 0);
	CHECK(info.st_uid == 33 && info.st_gid == 44 && (info.st_mode & 07777) == 0620);
	SAME(mq_receive(again, got, sizeof got, &priority), 5);
	CHECK(priority == 30 && !memcmp(got, "first", 5));
	SAME(mq_receive(queue, got, sizeof got, &priority), 5000);
	fill(should, 5000, 8);
	CHECK(priority == 4 && !memcmp(got, should, 5000));
	SAME(mq_receive(queue, got, sizeof got, &priority), 5);
	CHECK(priority == 3 && !memcmp(got, "later", 5));
	mqd_t named = mq_open(NAME, O_RDWR | O_NONBLOCK);
	CHECK(named >= 0);
	SAME(mq_receive(named, got, sizeof got, &priority), 6);
	CHECK(mq_receive(again, got, sizeof got, &priority) == -1 && errno == EAGAIN);
	CHECK(mq_send(again, "x", 1, 0) == -1 && errno == EBADF);
	CHECK(mq_unlink(NAME) == 0);
	CHECK(mq_open("/vmrestore-gone", O_RDWR) == -1 && errno == ENOENT);
	CHECK(mq_send(removed, "now", 3, 1) == 0);
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	siginfo_t told;
	struct timespec soon = { 1, 0 };
	SAME(sigtimedwait(&set, &told, &soon), SIGUSR1);
	SAME(told.si_code, SI_MESGQ);
	SAME(told.si_value.sival_int, 77);
	CHECK(mq_getattr(removed, &attr) == 0 && attr.mq_curmsgs == 1 && attr.mq_maxmsg == 2);
}

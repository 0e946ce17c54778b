/* A POSIX message queue that is to start a thread of the C library's (SIGEV_THREAD) with the next
 * message: the library's own socket is behind it.
 * expect: lost SIGEV_THREAD
 * may: netlink socket
 * live: no: the test takes none */
#include "state.h"
#include <mqueue.h>
static mqd_t queue;
static volatile int told;
static void tell(union sigval value) { told = value.sival_int; }
static void make(void)
{
	struct mq_attr attr = { .mq_maxmsg = 3, .mq_msgsize = 100 };
	struct sigevent event = { .sigev_notify = SIGEV_THREAD, .sigev_notify_function = tell };
	event.sigev_value.sival_int = 77;
	queue = mq_open("/vmrestore-thread", O_RDWR | O_CREAT | O_EXCL, 0600, &attr);
	if (queue < 0)
		ABSENT("no POSIX message queues");
	MUST(mq_notify(queue, &event));
}
static void check(void)
{
	char got[100];
	CHECK(mq_send(queue, "hello", 5, 1) == 0);
	rest(0.3);
	CHECK(mq_receive(queue, got, 100, NULL) == 5);
	/* It may ask anew. */
	struct sigevent event = { .sigev_notify = SIGEV_NONE };
	CHECK(mq_notify(queue, &event) == 0);
	CHECK(mq_unlink("/vmrestore-thread") == 0);
}

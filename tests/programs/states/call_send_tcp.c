/* Threads that send to TCP connections over loopback and wait for room, half of it done:
 * write(2) and sendmsg(2).
 * expect: reconstructed stay mapped
 * live: no: a call that is stopped returns with what it has moved */
#include "stream.h"
#define TOTAL 3000000L
static struct caller c, d;
static int one[2], two[2];
static struct iovec vector[12];
static long call(void) { return write(one[0], stream_out, TOTAL); }
static long call_too(void)
{
	struct msghdr message = { .msg_iov = vector, .msg_iovlen = 12 };
	return sendmsg(two[0], &message, 0);
}
static void make(void)
{
	int room = 100000;
	stream_begin();
	stream_vector(vector, 12, TOTAL);
	tcp_pair(AF_INET, 7731, one);
	tcp_pair(AF_INET, 7732, two);
	MUST(setsockopt(one[0], SOL_SOCKET, SO_SNDBUF, &room, sizeof room));
	MUST(setsockopt(two[0], SOL_SOCKET, SO_SNDBUF, &room, sizeof room));
	MUST(setsockopt(one[1], SOL_SOCKET, SO_RCVBUF, &room, sizeof room));
	MUST(setsockopt(two[1], SOL_SOCKET, SO_RCVBUF, &room, sizeof room));
	begin(&c, call, SYS_write);
	begin(&d, call_too, SYS_sendmsg);
	settle();
}
static void check(void)
{
	still_in(&c);
	still_in(&d);
	stream_from = &c, stream_source = one[0];
	stream_end(one[1], 0, TOTAL);
	back_with(&c, TOTAL, 0);
	stream_from = &d, stream_source = two[0];
	stream_end(two[1], 0, TOTAL);
	back_with(&d, TOTAL, 0);
}

/* Threads that receive: recvfrom(2) on a stream, recvmsg(2) on datagrams with a descriptor.
 * expect: exact
 * live: no: procfs does not say what a socket is connected to */
#include "call.h"
static struct caller c, d;
static int stream[2], datagram[2], got_fd = -1;
static char got[20], got_too[20];
static long call(void) { return recv(stream[0], got, 8, MSG_WAITALL); }
static long call_too(void)
{
	char control[64];
	struct iovec vector = { got_too, sizeof got_too };
	struct msghdr message = { .msg_iov = &vector, .msg_iovlen = 1, .msg_control = control,
				  .msg_controllen = sizeof control };
	long result = recvmsg(datagram[0], &message, 0);
	if (message.msg_controllen)
		memcpy(&got_fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), 4);
	return result;
}
static void make(void)
{
	MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, stream));
	MUST(socketpair(AF_UNIX, SOCK_DGRAM, 0, datagram));
	begin(&c, call, SYS_recvfrom);
	begin(&d, call_too, SYS_recvmsg);
}
static void check(void)
{
	char control[64] = { 0 };
	struct iovec vector = { "hello", 5 };
	struct msghdr message = { .msg_iov = &vector, .msg_iovlen = 1, .msg_control = control,
				  .msg_controllen = CMSG_SPACE(4) };
	struct cmsghdr *head = CMSG_FIRSTHDR(&message);
	*head = (struct cmsghdr){ CMSG_LEN(4), SOL_SOCKET, SCM_RIGHTS };
	memcpy(CMSG_DATA(head), &stream[1], 4);
	still_in(&c);
	still_in(&d);
	CHECK(sendmsg(datagram[1], &message, 0) == 5);
	back_with(&d, 5, 0);
	CHECK(write(got_fd, "12345678", 8) == 8);
	back_with(&c, 8, 0);
	CHECK(!memcmp(got, "12345678", 8) && !memcmp(got_too, "hello", 5));
}

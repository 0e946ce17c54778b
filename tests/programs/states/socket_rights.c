/* Descriptors on their way in a message: a file with its position, and a pipe's end.
 * expect: exact
 * live: no: procfs does not say what a socket is connected to */
#include "state.h"
static int pair[2], ends[2];
static void make(void)
{
	char control[64] = { 0 };
	struct iovec vector = { "two", 3 };
	struct msghdr message = { .msg_iov = &vector, .msg_iovlen = 1, .msg_control = control,
				  .msg_controllen = CMSG_SPACE(8) };
	struct cmsghdr *head = CMSG_FIRSTHDR(&message);
	int fds[2];
	MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
	MUST(pipe(ends));
	fds[0] = MUST(open("file", O_RDWR | O_CREAT, 0600));
	MUST(write(fds[0], "0123456789", 10));
	MUST(lseek(fds[0], 4, SEEK_SET));
	fds[1] = ends[0];
	*head = (struct cmsghdr){ CMSG_LEN(8), SOL_SOCKET, SCM_RIGHTS };
	memcpy(CMSG_DATA(head), fds, 8);
	MUST(sendmsg(pair[0], &message, 0));
	close(fds[0]);
	close(ends[0]);
	MUST(write(ends[1], "in the pipe", 11));
}
static void check(void)
{
	char control[64], text[20];
	struct iovec vector = { text, sizeof text };
	struct msghdr message = { .msg_iov = &vector, .msg_iovlen = 1, .msg_control = control,
				  .msg_controllen = sizeof control };
	int fds[2];
	CHECK(recvmsg(pair[1], &message, 0) == 3 && !memcmp(text, "two", 3));
	SAME(message.msg_controllen, CMSG_SPACE(8));
	memcpy(fds, CMSG_DATA(CMSG_FIRSTHDR(&message)), 8);
	CHECK(read(fds[0], text, 20) == 6 && !memcmp(text, "456789", 6));
	CHECK(read(fds[1], text, 20) == 11 && !memcmp(text, "in the pipe", 11));
}

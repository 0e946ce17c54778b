/* Threads that send to streams and wait for room, half of it done: write(2), writev(2),
 * sendto(2) and sendmsg(2) to UNIX sockets, the last with a descriptor.
 * expect: reconstructed stay mapped
 * live: no: a call that is stopped returns with what it has moved */
#include "stream.h"
static struct caller c[4];
static int pair[4][2], passed[2];
static struct iovec vector[2][9];
static long by_write(void) { return write(pair[0][0], stream_out, 2000000); }
static long by_writev(void) { return writev(pair[1][0], vector[0], 9); }
static long by_send(void) { return send(pair[2][0], stream_out, 2000000, 0); }
static long by_message(void)
{
	char control[CMSG_SPACE(4)] __attribute__((aligned(8))) = { 0 };
	struct msghdr message = { .msg_iov = vector[1], .msg_iovlen = 9, .msg_control = control,
				  .msg_controllen = sizeof control };
	struct cmsghdr *head = CMSG_FIRSTHDR(&message);
	*head = (struct cmsghdr){ CMSG_LEN(4), SOL_SOCKET, SCM_RIGHTS };
	memcpy(CMSG_DATA(head), &passed[0], 4);
	return sendmsg(pair[3][0], &message, 0);
}
static void make(void)
{
	long (*calls[])(void) = { by_write, by_writev, by_send, by_message };
	long numbers[] = { SYS_write, SYS_writev, SYS_sendto, SYS_sendmsg };
	stream_begin();
	MUST(pipe(passed));
	stream_vector(vector[0], 9, 2000000);
	stream_vector(vector[1], 9, 1500000);
	for (int i = 0; i < 4; i++) {
		MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, pair[i]));
		begin(&c[i], calls[i], numbers[i]);
	}
	settle();
}
static void check(void)
{
	long total[] = { 2000000, 2000000, 2000000, 1500000 };
	for (int i = 0; i < 4; i++)
		still_in(&c[i]);
	for (int i = 0; i < 3; i++) {
		stream_end(pair[i][1], 0, total[i]);
		back_with(&c[i], total[i], 0);
	}
	/* The descriptor came with the first byte, and once. */
	int fds = 0;
	for (long have = 0; have < total[3];) {
		char control[64] __attribute__((aligned(8)));
		struct iovec one = { stream_in, MUCH };
		struct msghdr message = { .msg_iov = &one, .msg_iovlen = 1, .msg_control = control,
					  .msg_controllen = sizeof control };
		long got = recvmsg(pair[3][1], &message, 0);
		CHECK(got > 0);
		if (CMSG_FIRSTHDR(&message))
			fds += have == 0 ? 1 : 100;
		for (long i = 0; i < got; i++)
			CHECK(stream_in[i] == byte_at(have + i));
		have += got;
	}
	SAME(fds, 1);
	back_with(&c[3], total[3], 0);
	CHECK(recv(pair[3][1], stream_in, 1, MSG_DONTWAIT) == -1 && errno == EAGAIN);
}

/* A UNIX listener with connections that were not accepted: one whose other end the
 * program has, with data and a descriptor on its way, and one whose other end was closed.
 * expect: reconstructed waiting to be accepted
 * live: no: procfs does not say what a socket is connected to */
#include "state.h"
#include <sys/un.h>
static int listener, client;
static struct sockaddr_un name = { AF_UNIX, "path" };
static void send_fd(int to, int fd)
{
	char control[CMSG_SPACE(sizeof(int))] = { 0 };
	struct iovec data = { "with it", 7 };
	struct msghdr message = { .msg_iov = &data, .msg_iovlen = 1, .msg_control = control,
		.msg_controllen = sizeof control };
	struct cmsghdr *header = CMSG_FIRSTHDR(&message);
	header->cmsg_level = SOL_SOCKET;
	header->cmsg_type = SCM_RIGHTS;
	header->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(header), &fd, sizeof fd);
	MUST(sendmsg(to, &message, 0));
}
static void make(void)
{
	int ends[2];
	listener = MUST(socket(AF_UNIX, SOCK_STREAM, 0));
	MUST(bind(listener, (void *)&name, sizeof name));
	MUST(listen(listener, 5));
	client = MUST(socket(AF_UNIX, SOCK_STREAM, 0));
	MUST(connect(client, (void *)&name, sizeof name));
	MUST(write(client, "first", 5));
	MUST(pipe(ends));
	send_fd(client, ends[0]);
	MUST(write(ends[1], "piped", 5));
	close(ends[0]);
	int other = MUST(socket(AF_UNIX, SOCK_STREAM, 0));
	MUST(connect(other, (void *)&name, sizeof name));
	MUST(write(other, "second", 6));
	close(other);
}
static void check(void)
{
	char got[16], control[CMSG_SPACE(sizeof(int))];
	CHECK(fcntl(listener, F_SETFL, O_NONBLOCK) == 0);
	int one = accept(listener, NULL, NULL);
	CHECK(one >= 0);
	int two = accept(listener, NULL, NULL);
	CHECK(two >= 0);
	CHECK(accept(listener, NULL, NULL) == -1 && errno == EAGAIN);
	SAME(recv(one, got, 5, MSG_DONTWAIT), 5);
	CHECK(!memcmp(got, "first", 5));
	struct iovec data = { got, 7 };
	struct msghdr message = { .msg_iov = &data, .msg_iovlen = 1, .msg_control = control,
		.msg_controllen = sizeof control };
	SAME(recvmsg(one, &message, MSG_DONTWAIT), 7);
	struct cmsghdr *header = CMSG_FIRSTHDR(&message);
	int fd;
	CHECK(header && header->cmsg_type == SCM_RIGHTS);
	memcpy(&fd, CMSG_DATA(header), sizeof fd);
	SAME(read(fd, got, 5), 5);
	CHECK(!memcmp(got, "piped", 5));
	CHECK(write(client, "x", 1) == 1 && read(one, got, 1) == 1 && write(one, "y", 1) == 1);
	SAME(read(client, got, 1), 1);
	SAME(read(two, got, 10), 6);
	CHECK(!memcmp(got, "second", 6));
	SAME(read(two, got, 1), 0);
}

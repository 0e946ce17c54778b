/* A TCP connection over loopback whose two ends are the program's own: what was
 * received and not read, read in part, acknowledged or not.
 * expect: exact
 */
#include "tcp.h"
static int pair[2], port[2];
static int port_of(int fd)
{
	struct sockaddr_in at;
	socklen_t len = sizeof at;
	return getsockname(fd, (void *)&at, &len) ? -1 : ntohs(at.sin_port);
}
static void make(void)
{
	char got[8];
	int on = 1;
	tcp_pair(AF_INET, 7711, pair);
	MUST(setsockopt(pair[0], IPPROTO_TCP, TCP_NODELAY, &on, sizeof on));
	MUST(write(pair[0], "hello there", 11));
	MUST(write(pair[1], "one", 3));
	MUST(write(pair[1], "two", 3));
	if (read(pair[1], got, 6) != 6 || memcmp(got, "hello ", 6))
		MUST(-1);
	port[0] = port_of(pair[0]);
	port[1] = port_of(pair[1]);
}
static void check(void)
{
	char got[16];
	CHECK(read_all(pair[1], got, 5) && !memcmp(got, "there", 5));
	CHECK(read_all(pair[0], got, 6) && !memcmp(got, "onetwo", 6));
	CHECK(recv(pair[0], got, 1, MSG_DONTWAIT) == -1 && errno == EAGAIN);
	CHECK(talks(pair[0], pair[1]) && talks(pair[1], pair[0]));
	SAME(port_of(pair[0]), port[0]);
	SAME(port_of(pair[1]), port[1]);
	struct sockaddr_in at;
	socklen_t len = sizeof at;
	CHECK(getpeername(pair[0], (void *)&at, &len) == 0 && ntohs(at.sin_port) == 7711);
	SAME(tcp_state(pair[0]), TCP_ESTABLISHED);
	/* The end arrives. */
	close(pair[0]);
	CHECK(at_end(pair[1]));
}

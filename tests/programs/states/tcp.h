/* TCP over loopback, for the programs that hold connections. */
#pragma once
#include "state.h"
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/ioctl.h>

union address {
	struct sockaddr any;
	struct sockaddr_in v4;
	struct sockaddr_in6 v6;
};

UNUSED static socklen_t loopback(union address *at, int family, int port)
{
	memset(at, 0, sizeof *at);
	if (family == AF_INET) {
		at->v4 = (struct sockaddr_in){ .sin_family = AF_INET, .sin_port = htons(port) };
		at->v4.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
		return sizeof at->v4;
	}
	at->v6 = (struct sockaddr_in6){ .sin6_family = AF_INET6, .sin6_port = htons(port) };
	at->v6.sin6_addr = in6addr_loopback;
	return sizeof at->v6;
}

UNUSED static int listen_at(int family, int port, int backlog)
{
	union address at;
	socklen_t len = loopback(&at, family, port);
	int fd = socket(family, SOCK_STREAM, 0), on = 1;
	if (fd < 0)
		ABSENT("no such sockets");
	MUST(setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on));
	if (bind(fd, &at.any, len) < 0 && errno == EADDRNOTAVAIL)
		ABSENT("no such addresses");
	MUST(listen(fd, backlog));
	return fd;
}

UNUSED static int connect_to(int family, int port)
{
	union address at;
	socklen_t len = loopback(&at, family, port);
	int fd = MUST(socket(family, SOCK_STREAM, 0));
	MUST(connect(fd, &at.any, len));
	return fd;
}

/* A client, and the end of whoever accepted it. */
UNUSED static void tcp_pair(int family, int port, int pair[2])
{
	int listener = listen_at(family, port, 3);
	pair[0] = connect_to(family, port);
	pair[1] = MUST(accept(listener, NULL, NULL));
	close(listener);
}

UNUSED static int tcp_state(int fd)
{
	struct tcp_info info = { 0 };
	socklen_t len = sizeof info;
	return getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &len) ? -1 : info.tcpi_state;
}

/* Waits until a socket is in a state. */
UNUSED static int tcp_await(int fd, int state)
{
	for (int i = 0; i < 200; i++) {
		if (tcp_state(fd) == state)
			return 1;
		rest(0.01);
	}
	return 0;
}

/* Waits until so many connections wait to be accepted: a client knows of its connection before the
 * listener does. */
UNUSED static int tcp_await_queue(int listener, unsigned wanted)
{
	for (int i = 0; i < 500; i++) {
		struct tcp_info info = { 0 };
		socklen_t len = sizeof info;
		if (!getsockopt(listener, IPPROTO_TCP, TCP_INFO, &info, &len) && info.tcpi_unacked == wanted)
			return 1;
		rest(0.01);
	}
	return 0;
}

/* Reads exactly so many bytes, for ten seconds at most. */
UNUSED static int read_all(int fd, void *to, size_t len)
{
	char *at = to;
	while (len) {
		struct pollfd one = { fd, POLLIN, 0 };
		if (poll(&one, 1, 10000) != 1)
			return 0;
		ssize_t got = recv(fd, at, len, 0);
		if (got <= 0)
			return 0;
		at += got;
		len -= got;
	}
	return 1;
}

/* Both directions work. */
UNUSED static int talks(int a, int b)
{
	char got[16];
	return write(a, "how are you?", 12) == 12 && read_all(b, got, 12) && !memcmp(got, "how are you?", 12)
		&& write(b, "well", 4) == 4 && read_all(a, got, 4) && !memcmp(got, "well", 4);
}

UNUSED static int at_end(int fd)
{
	struct pollfd one = { fd, POLLIN, 0 };
	char byte;
	return poll(&one, 1, 10000) == 1 && recv(fd, &byte, 1, 0) == 0;
}

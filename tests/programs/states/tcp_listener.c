/* TCP listeners, IPv4 and IPv6 alone, with a backlog.
 * expect: exact
 * live: no: procfs does not say all of it */
#include "state.h"
#include <arpa/inet.h>
static int four, six;
static void make(void)
{
	struct sockaddr_in at = { .sin_family = AF_INET, .sin_port = htons(7703) };
	struct sockaddr_in6 at6 = { .sin6_family = AF_INET6, .sin6_port = htons(7703) };
	int on = 1;
	four = MUST(socket(AF_INET, SOCK_STREAM, 0));
	MUST(setsockopt(four, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on));
	MUST(bind(four, (void *)&at, sizeof at));
	MUST(listen(four, 9));
	six = socket(AF_INET6, SOCK_STREAM | SOCK_NONBLOCK, 0);
	if (six < 0)
		ABSENT("no IPv6");
	MUST(setsockopt(six, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof on));
	MUST(bind(six, (void *)&at6, sizeof at6));
	MUST(listen(six, 9));
}
static void check(void)
{
	struct sockaddr_in at = { .sin_family = AF_INET, .sin_port = htons(7703) };
	char got[10];
	at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	int client = socket(AF_INET, SOCK_STREAM, 0);
	CHECK(connect(client, (void *)&at, sizeof at) == 0);
	int fd = accept(four, NULL, NULL);
	CHECK(fd >= 0 && write(client, "hello", 5) == 5 && read(fd, got, 10) == 5);
	CHECK(accept(six, NULL, NULL) == -1 && errno == EAGAIN);
	int on = 0;
	socklen_t len = sizeof on;
	CHECK(getsockopt(six, IPPROTO_IPV6, IPV6_V6ONLY, &on, &len) == 0 && on == 1);
}

/* Bound UNIX datagram sockets: a path, an abstract name, one that the kernel chose.
 * expect: exact
 * live: no: procfs does not tell abstract names apart */
#include "state.h"
#include <stddef.h>
#include <sys/un.h>
static int fds[3];
static struct sockaddr_un names[3] = { { AF_UNIX, "path" }, { AF_UNIX, "\0abstract" }, { AF_UNIX, "" } };
static socklen_t lens[3] = { sizeof names[0], offsetof(struct sockaddr_un, sun_path) + 9, 2 };
static void make(void)
{
	for (int i = 0; i < 3; i++) {
		fds[i] = MUST(socket(AF_UNIX, SOCK_DGRAM, 0));
		MUST(bind(fds[i], (void *)&names[i], lens[i]));
		lens[i] = sizeof names[i];
		MUST(getsockname(fds[i], (void *)&names[i], &lens[i]));
	}
}
static void check(void)
{
	int sender = socket(AF_UNIX, SOCK_DGRAM, 0);
	for (int i = 0; i < 3; i++) {
		struct sockaddr_un now;
		socklen_t len = sizeof now;
		char got[10];
		CHECK(getsockname(fds[i], (void *)&now, &len) == 0);
		CHECK(len == lens[i] && !memcmp(&now, &names[i], len));
		CHECK(sendto(sender, "hello", 5, 0, (void *)&names[i], lens[i]) == 5);
		CHECK(recv(fds[i], got, 10, MSG_DONTWAIT) == 5 && !memcmp(got, "hello", 5));
	}
}

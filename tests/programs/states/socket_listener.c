/* UNIX listeners, stream and seqpacket, at a path and at an abstract name.
 * expect: exact
 * live: no: procfs does not tell abstract names apart */
#include "state.h"
#include <stddef.h>
#include <sys/un.h>
static int fds[2];
static struct sockaddr_un names[2] = { { AF_UNIX, "path" }, { AF_UNIX, "\0state" } };
static const int kinds[2] = { SOCK_STREAM, SOCK_SEQPACKET };
#define LEN(i) ((i) ? offsetof(struct sockaddr_un, sun_path) + 6 : sizeof names[0])
static void make(void)
{
	for (int i = 0; i < 2; i++) {
		fds[i] = MUST(socket(AF_UNIX, kinds[i], 0));
		MUST(bind(fds[i], (void *)&names[i], LEN(i)));
		MUST(chmod("path", 0620));
		MUST(listen(fds[i], 5));
	}
}
static void check(void)
{
	struct stat info;
	for (int i = 0; i < 2; i++) {
		int on, other = socket(AF_UNIX, kinds[i], 0);
		socklen_t len = sizeof on;
		CHECK(getsockopt(fds[i], SOL_SOCKET, SO_ACCEPTCONN, &on, &len) == 0 && on == 1);
		CHECK(connect(other, (void *)&names[i], LEN(i)) == 0);
		CHECK(accept(fds[i], NULL, NULL) >= 0);
	}
	CHECK(stat("path", &info) == 0 && (info.st_mode & 0777) == 0620);
}

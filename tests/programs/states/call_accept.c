/* A thread in accept(2) on a UNIX listener.
 * expect: exact */
#include "call.h"
#include <sys/un.h>
static struct caller c;
static int listener;
static struct sockaddr_un address = { AF_UNIX, "socket" };
static long call(void) { return accept(listener, NULL, NULL) >= 0; }
static void make(void)
{
	listener = MUST(socket(AF_UNIX, SOCK_STREAM, 0));
	MUST(bind(listener, (void *)&address, sizeof address));
	MUST(listen(listener, 5));
	begin(&c, call, SYS_accept);
}
static void check(void)
{
	still_in(&c);
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);
	CHECK(connect(fd, (void *)&address, sizeof address) == 0);
	back_with(&c, 1, 0);
}

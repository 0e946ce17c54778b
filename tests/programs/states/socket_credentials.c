/* Who the other end of a UNIX connection is (SO_PEERCRED), and SO_PASSCRED.
 * expect: exact
 * live: no: procfs does not say what a socket is connected to */
#include "state.h"
static int pair[2];
static void make(void)
{
	int on = 1;
	MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
	MUST(setsockopt(pair[1], SOL_SOCKET, SO_PASSCRED, &on, sizeof on));
}
static void check(void)
{
	struct ucred cred;
	socklen_t len = sizeof cred;
	int on = 0;
	CHECK(getsockopt(pair[0], SOL_SOCKET, SO_PEERCRED, &cred, &len) == 0);
	SAME(cred.pid, getpid());
	SAME(cred.uid, 0);
	len = sizeof on;
	CHECK(getsockopt(pair[1], SOL_SOCKET, SO_PASSCRED, &on, &len) == 0 && on == 1);
}

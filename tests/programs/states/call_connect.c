/* A thread in connect(2) to a UNIX listener whose queue is full.
 * expect: exact
 * live: no: nobody can look into a backlog */
#include "call.h"
#include <sys/un.h>
static struct caller c;
static int listener, first, second;
static struct sockaddr_un address = { AF_UNIX, "socket" };
static long call(void) { return connect(second, (void *)&address, sizeof address); }
static void make(void)
{
	listener = MUST(socket(AF_UNIX, SOCK_STREAM, 0));
	first = MUST(socket(AF_UNIX, SOCK_STREAM, 0));
	second = MUST(socket(AF_UNIX, SOCK_STREAM, 0));
	MUST(bind(listener, (void *)&address, sizeof address));
	MUST(listen(listener, 0));
	MUST(connect(first, (void *)&address, sizeof address));
	begin(&c, call, SYS_connect);
}
static void check(void)
{
	char byte;
	still_in(&c);
	int one = accept(listener, NULL, NULL);
	CHECK(one >= 0);
	CHECK(write(first, "x", 1) == 1 && read(one, &byte, 1) == 1 && byte == 'x');
	back_with(&c, 0, 0);
	int two = accept(listener, NULL, NULL);
	CHECK(two >= 0);
	CHECK(write(second, "y", 1) == 1 && read(two, &byte, 1) == 1 && byte == 'y');
}

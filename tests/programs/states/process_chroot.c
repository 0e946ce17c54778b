/* A root directory of its own (chroot), with a file, a named socket and a pipe in it, and a descriptor
 * to the world outside.
 * expect: exact
 * live: no: the test finds files by the host's paths */
#include "state.h"
#include <sys/un.h>
static int outside, inside, listener, ends[2], again;
static struct sockaddr_un name = { AF_UNIX, "/socket" };
static void make(void)
{
	outside = MUST(open("/", O_RDONLY | O_DIRECTORY));
	MUST(mkdir("jail", 0700));
	MUST(chroot("jail"));
	MUST(chdir("/"));
	inside = MUST(open("file", O_RDWR | O_CREAT, 0600));
	MUST(write(inside, "inside", 6));
	listener = MUST(socket(AF_UNIX, SOCK_STREAM, 0));
	MUST(bind(listener, (void *)&name, sizeof name));
	MUST(listen(listener, 3));
	MUST(pipe(ends));
	char path[40];
	snprintf(path, sizeof path, "proc/self/fd/%d", ends[1]);
	again = MUST(openat(outside, path, O_WRONLY | O_NONBLOCK));
	MUST(write(again, "pipe", 4));
}
static void check(void)
{
	char got[10], here[100];
	CHECK(getcwd(here, sizeof here) && !strcmp(here, "/"));
	CHECK(pread(inside, got, 10, 0) == 6);
	CHECK(access("/file", F_OK) == 0 && access("/proc", F_OK) == -1);
	CHECK(faccessat(outside, "proc/self", F_OK, 0) == 0);
	/* Without a way out but that descriptor. */
	CHECK(chdir("..") == 0 && getcwd(here, sizeof here) && !strcmp(here, "/"));
	CHECK(read(ends[0], got, 10) == 4);
	SAME(fcntl(ends[1], F_GETFL) & O_NONBLOCK, 0);
	SAME(fcntl(again, F_GETFL) & O_NONBLOCK, O_NONBLOCK);
	int client = socket(AF_UNIX, SOCK_STREAM, 0);
	CHECK(connect(client, (void *)&name, sizeof name) == 0);
	CHECK(accept(listener, NULL, NULL) >= 0);
}

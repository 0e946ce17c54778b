/* A socket's file on a file system that goes with the host: others may connect to it as before.
 * expect: reconstructed directory /tmp/state-socket
 * live: no: its file does not go away
 */
#include "state.h"
#include <sys/un.h>
static const struct sockaddr_un at = { AF_UNIX, "/tmp/state-socket/here" };
static int fd;
static void make(void)
{
	umask(0);
	MUST(mkdir("/tmp/state-socket", 0711));
	fd = MUST(socket(AF_UNIX, SOCK_STREAM, 0));
	MUST(bind(fd, (const void *)&at, sizeof at));
	MUST(listen(fd, 5));
	MUST(chown(at.sun_path, 33, 34));
	MUST(chmod(at.sun_path, 0721));
	MUST(chown("/tmp/state-socket", 35, 36));
	MUST(chmod("/tmp/state-socket", 0751));
}
static void check(void)
{
	struct stat st;
	CHECK(stat(at.sun_path, &st) == 0 && S_ISSOCK(st.st_mode));
	SAME(st.st_mode & 07777, 0721);
	CHECK(st.st_uid == 33 && st.st_gid == 34);
	CHECK(stat("/tmp/state-socket", &st) == 0);
	SAME(st.st_mode & 07777, 0751);
	CHECK(st.st_uid == 35 && st.st_gid == 36);
	int c = MUST(socket(AF_UNIX, SOCK_STREAM, 0));
	SAME(connect(c, (const void *)&at, sizeof at), 0);
	CHECK(accept(fd, NULL, NULL) >= 0);
}

/* A fanotify group.
 * expect: lost fanotify
 * may: open file
 * live: no: the test takes none */
#include "state.h"
#include <sys/fanotify.h>
static int fd;
static void make(void)
{
	fd = fanotify_init(FAN_CLASS_NOTIF | FAN_NONBLOCK, O_RDONLY);
	if (fd < 0)
		ABSENT("no fanotify");
	MUST(fanotify_mark(fd, FAN_MARK_ADD, FAN_MODIFY | FAN_ONDIR, AT_FDCWD, "."));
}
static void check(void)
{
	char got[500];
	CHECK(read(fd, got, sizeof got) == -1 && errno == EAGAIN);
}

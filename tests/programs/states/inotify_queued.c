/* An inotify instance with events that nobody has read: they are of the past.
 * expect: lost events that nobody has read
 * live: no: procfs does not say what is watched by its name */
#include "state.h"
#include <sys/inotify.h>
static int fd, wd;
static void make(void)
{
	fd = MUST(inotify_init1(IN_NONBLOCK));
	wd = MUST(inotify_add_watch(fd, ".", IN_CREATE | IN_DELETE));
	MUST(close(open("file", O_CREAT | O_RDWR, 0600)));
}
static void check(void)
{
	char got[500];
	CHECK(read(fd, got, sizeof got) == -1 && errno == EAGAIN);
	MUST(unlink("file"));
	CHECK(read(fd, got, sizeof got) > 0);
	struct inotify_event *e = (void *)got;
	CHECK(e->wd == wd && e->mask == IN_DELETE && !strcmp(e->name, "file"));
}

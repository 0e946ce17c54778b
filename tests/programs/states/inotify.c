/* An inotify instance: numbers with a gap, a file and a directory, once only, and masks.
 * expect: exact
 * live: no: procfs does not say what is watched by its name */
#include "state.h"
#include <sys/inotify.h>
static int fd, dir, file, once;
static void make(void)
{
	fd = MUST(inotify_init1(IN_NONBLOCK));
	MUST(close(open("file", O_CREAT | O_RDWR, 0600)));
	MUST(mkdir("sub", 0700));
	MUST(mkdir("once", 0700));
	for (int i = 0; i < 3; i++)
		MUST(inotify_rm_watch(fd, MUST(inotify_add_watch(fd, ".", IN_CREATE))));
	dir = MUST(inotify_add_watch(fd, "sub", IN_CREATE | IN_DELETE));
	MUST(inotify_rm_watch(fd, MUST(inotify_add_watch(fd, ".", IN_CREATE))));
	file = MUST(inotify_add_watch(fd, "file", IN_MODIFY | IN_ATTRIB));
	once = MUST(inotify_add_watch(fd, "once", IN_OPEN | IN_CREATE | IN_ONESHOT));
	char got[4096];
	while (read(fd, got, sizeof got) > 0)
		;
}
static void gives(int wd, unsigned mask, const char *name)
{
	static char got[4096];
	static long len, at;
	if (at >= len) {
		len = read(fd, got, sizeof got);
		at = 0;
		CHECK(len > 0);
	}
	struct inotify_event *e = (void *)(got + at);
	at += sizeof *e + e->len;
	SAME(e->wd, wd);
	SAME(e->mask, mask);
	CHECK(!strcmp(e->len ? e->name : "", name));
}
static void check(void)
{
	char got[4096];
	CHECK(read(fd, got, sizeof got) == -1 && errno == EAGAIN);
	MUST(close(open("sub/new", O_CREAT | O_RDWR, 0600)));
	gives(dir, IN_CREATE, "new");
	MUST(close(open("once/new", O_CREAT | O_RDWR, 0600)));
	gives(once, IN_CREATE, "new");
	gives(once, IN_IGNORED, "");
	MUST(write(MUST(open("file", O_WRONLY)), "x", 1));
	gives(file, IN_MODIFY, "");
	CHECK(inotify_rm_watch(fd, dir) == 0);
	gives(dir, IN_IGNORED, "");
	CHECK(read(fd, got, sizeof got) == -1 && errno == EAGAIN);
}

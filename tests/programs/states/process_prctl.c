/* What prctl(2) set of the process: dumpable, subreaper, THP, the core-dump filter.
 * expect: exact
 * live: no: procfs does not say all of it */
#include "look.h"
static void make(void)
{
	MUST(prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0));
	MUST(prctl(PR_SET_DUMPABLE, 0, 0, 0, 0));
	int fd = MUST(open("/proc/self/coredump_filter", O_WRONLY));
	MUST(write(fd, "0x7b", 4));
	close(fd);
}
static void check(void)
{
	int on = 0;
	char got[20] = "";
	CHECK(prctl(PR_GET_CHILD_SUBREAPER, &on, 0, 0, 0) == 0 && on == 1);
	SAME(prctl(PR_GET_DUMPABLE, 0, 0, 0, 0), 0);
	int fd = open("/proc/self/coredump_filter", O_RDONLY);
	CHECK(read(fd, got, 19) > 0);
	SAME(strtol(got, NULL, 16), 0x7b);
}

/* Resource limits, umask, and the OOM score.
 * expect: exact */
#include "look.h"
#include <sys/resource.h>
static void make(void)
{
	struct rlimit limit = { 321, 654 };
	MUST(setrlimit(RLIMIT_NOFILE, &limit));
	limit = (struct rlimit){ 1 << 20, RLIM_INFINITY };
	MUST(setrlimit(RLIMIT_CORE, &limit));
	limit = (struct rlimit){ 5 << 20, 6 << 20 };
	MUST(setrlimit(RLIMIT_STACK, &limit));
	umask(0137);
	int fd = MUST(open("/proc/self/oom_score_adj", O_WRONLY));
	MUST(write(fd, "345", 3));
	close(fd);
}
static void check(void)
{
	struct rlimit limit;
	CHECK(getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur == 321 && limit.rlim_max == 654);
	CHECK(getrlimit(RLIMIT_CORE, &limit) == 0 && limit.rlim_cur == 1 << 20 &&
	      limit.rlim_max == RLIM_INFINITY);
	CHECK(getrlimit(RLIMIT_STACK, &limit) == 0 && limit.rlim_cur == 5 << 20 &&
	      limit.rlim_max == 6 << 20);
	SAME(umask(0), 0137);
	char got[10] = "";
	int fd = open("/proc/self/oom_score_adj", O_RDONLY);
	CHECK(read(fd, got, 9) > 0);
	SAME(atoi(got), 345);
}

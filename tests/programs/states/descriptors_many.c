/* A thousand descriptors with gaps between, and the highest that is allowed.
 * expect: exact */
#include "state.h"
#include <sys/resource.h>
static int first, last;
static void make(void)
{
	struct rlimit limit = { 4000, 4096 };
	MUST(setrlimit(RLIMIT_NOFILE, &limit));
	first = MUST(open("file", O_RDWR | O_CREAT, 0600));
	MUST(write(first, "x", 1));
	for (int i = 500; i < 1500; i += 3)
		MUST(dup2(first, i));
	last = MUST(dup2(first, 3999));
}
static void check(void)
{
	for (int i = 500; i < 1500; i++)
		SAME(lseek(i, 0, SEEK_CUR), i % 3 == 2 ? 1 : -1);
	SAME(lseek(last, 0, SEEK_CUR), 1);
	SAME(dup(first), first + 1);
}

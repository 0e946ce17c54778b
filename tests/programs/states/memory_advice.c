/* What madvise(2) said of memory: for forks, core dumps and read-ahead.
 * expect: exact */
#include "look.h"
#include <sys/wait.h>
static char *p;
static const int advice[] = { MADV_DONTFORK, MADV_DONTDUMP, MADV_WIPEONFORK, MADV_SEQUENTIAL,
			      MADV_RANDOM };
static const char *const flags[] = { "dc", "dd", "wf", "sr", "rr" };
#define N 5
static void make(void)
{
	p = map(2 * N * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	fill(p, 2 * N * PAGE, 1);
	for (int i = 0; i < N; i++)
		MUST(madvise(p + 2 * i * PAGE, PAGE, advice[i]));
}
static void check(void)
{
	int status;
	CHECK(filled(p, 2 * N * PAGE, 1));
	for (int i = 0; i < N; i++)
		for (int j = 0; j < N; j++)
			SAME(has_flag(p + 2 * i * PAGE, flags[j]), i == j);
	pid_t child = fork();
	if (child == 0) {
		unsigned char there;
		_exit((p[4 * PAGE] == 0 && p[4 * PAGE + 999] == 0) << 1 |
		      (mincore(p, PAGE, &there) == -1 && errno == ENOMEM));
	}
	CHECK(waitpid(child, &status, 0) == child);
	SAME(status >> 8, 3);
}

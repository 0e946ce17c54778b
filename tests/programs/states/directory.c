/* A directory that is being read, half-way through.
 * expect: exact */
#include "state.h"
#include <dirent.h>
#define N 40
static int fd;
static char seen[N];
static int take(int most)
{
	char buffer[24 * 4];
	int count = 0;
	for (;;) {
		long len = syscall(SYS_getdents64, fd, buffer, sizeof buffer);
		if (len <= 0)
			return count;
		for (long at = 0; at < len;) {
			struct dirent64 *entry = (void *)(buffer + at);
			int n;
			if (sscanf(entry->d_name, "f%d", &n) == 1)
				seen[n]++;
			at += entry->d_reclen;
		}
		if (++count >= most)
			return count;
	}
}
static void make(void)
{
	char name[20];
	MUST(mkdir("many", 0700));
	for (int i = 0; i < N; i++) {
		snprintf(name, sizeof name, "many/f%d", i);
		MUST(close(open(name, O_CREAT | O_WRONLY, 0600)));
	}
	fd = MUST(open("many", O_RDONLY | O_DIRECTORY));
	MUST(take(5));
}
static void check(void)
{
	take(1000);
	for (int i = 0; i < N; i++)
		SAME(seen[i], 1);
}

/* A thread in seccomp's strict mode, in one of the four calls that it may make.
 * expect: exact */
#include "call.h"
static struct caller c;
static int fds[2], back[2];
static long call(void)
{
	char byte;
	if (prctl(PR_SET_SECCOMP, 1))
		return -5;
	if (read(fds[0], &byte, 1) != 1 || write(back[1], &byte, 1) != 1)
		return -6;
	c.done = 2;
	for (;;)
		syscall(SYS_exit, 0);
	return 0;
}
static void make(void)
{
	MUST(pipe(fds));
	MUST(pipe(back));
	begin(&c, call, SYS_read);
}
static void check(void)
{
	char byte = 0, path[64], line[200];
	int mode = -1;
	still_in(&c);
	snprintf(path, sizeof path, "/proc/self/task/%d/status", c.tid);
	FILE *file = fopen(path, "re");
	while (file && fgets(line, sizeof line, file))
		sscanf(line, "Seccomp: %d", &mode);
	SAME(mode, 1);
	CHECK(write(fds[1], "s", 1) == 1);
	CHECK(read(back[0], &byte, 1) == 1 && byte == 's');
	for (int i = 0; i < 100 && kill(c.tid, 0) == 0; i++)
		rest(0.05);
	SAME(c.done, 2);
}

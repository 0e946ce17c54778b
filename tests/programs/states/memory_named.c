/* Names of anonymous memory, and a private mapping of /dev/zero.
 * expect: exact */
#include "look.h"
#include <linux/prctl.h>
static char *p, *q;
static void make(void)
{
	p = map(4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	fill(p, 4 * PAGE, 1);
	int fd = MUST(open("/dev/zero", O_RDWR));
	q = map(4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
	close(fd);
	fill(q, 2 * PAGE, 2);
	if (prctl(PR_SET_VMA, PR_SET_VMA_ANON_NAME, p, 4 * PAGE, "of the test"))
		ABSENT("memory has no names here");
}
static void check(void)
{
	CHECK(filled(p, 4 * PAGE, 1) && filled(q, 2 * PAGE, 2) && q[3 * PAGE] == 0);
	char line[500], start[40];
	int found = 0;
	FILE *maps = fopen("/proc/self/maps", "re");
	snprintf(start, sizeof start, "%lx-", (unsigned long)p);
	while (fgets(line, sizeof line, maps))
		found |= !strncmp(line, start, strlen(start)) && strstr(line, "[anon:of the test]");
	CHECK(found);
}

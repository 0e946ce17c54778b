/* Read-only mappings of a file, one of them beyond its end.
 * expect: exact */
#include "state.h"
#include <setjmp.h>
static char *p;
static sigjmp_buf back;
static void fault(int signal) { siglongjmp(back, signal); }
static void make(void)
{
	char content[3 * PAGE];
	signal(SIGBUS, fault);
	int fd = MUST(open("file", O_RDWR | O_CREAT, 0600));
	fill(content, sizeof content, 1);
	MUST(write(fd, content, sizeof content - 100));
	close(fd);
	fd = MUST(open("file", O_RDONLY));
	p = map(6 * PAGE, PROT_READ, MAP_SHARED, fd, 0);
	close(fd);
}
static void check(void)
{
	CHECK(filled(p, 2 * PAGE, 1) && p[3 * PAGE - 1] == 0);
	if (sigsetjmp(back, 1) == 0) {
		*(volatile char *)(p + 4 * PAGE);
		FAIL("there is something behind the file's end");
	}
	CHECK(mprotect(p, PAGE, PROT_READ | PROT_WRITE) == -1 && errno == EACCES);
}

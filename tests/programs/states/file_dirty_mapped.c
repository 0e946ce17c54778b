/* A shared mapping of a file that is being written to when the host dies.
 * expect: exact */
#include "state.h"
static pthread_t thread;
static volatile long go, turns;
static volatile long *p;
static void *run(void *unused)
{
	while (!go) {
		turns++;
		for (int i = 0; i < 8; i++)
			p[i * 512 + 5] = turns * 8 + i;
		rest(0.02);
	}
	return unused;
}
static void make(void)
{
	int fd = MUST(open("file", O_RDWR | O_CREAT, 0600));
	MUST(ftruncate(fd, 8 * PAGE));
	p = (void *)map(8 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	close(fd);
	MUST(-pthread_create(&thread, NULL, run, NULL));
	rest(0.3);
}
static void check(void)
{
	long got;
	go = 1;
	pthread_join(thread, NULL);
	int fd = open("file", O_RDONLY);
	for (int i = 0; i < 8; i++) {
		SAME(p[i * 512 + 5], turns * 8 + i);
		CHECK(pread(fd, &got, 8, i * PAGE + 40) == 8);
		SAME(got, turns * 8 + i);
	}
}

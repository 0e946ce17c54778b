/* A file that is being written to when the host dies, and never synced.
 * expect: exact */
#include "state.h"
static pthread_t thread;
static volatile long written, go;
static int fd;
static void *run(void *unused)
{
	char line[32];
	while (!go) {
		int len = snprintf(line, sizeof line, "line %ld\n", written);
		if (write(fd, line, len) != len)
			break;
		written++;
		rest(0.05);
	}
	return unused;
}
static void make(void)
{
	fd = MUST(open("file", O_RDWR | O_CREAT | O_TRUNC, 0600));
	MUST(-pthread_create(&thread, NULL, run, NULL));
	rest(0.3);
}
static void check(void)
{
	char line[40];
	go = 1;
	pthread_join(thread, NULL);
	FILE *file = fopen("file", "re");
	for (long i = 0; i < written; i++) {
		long number = -1;
		CHECK(fgets(line, sizeof line, file) && sscanf(line, "line %ld", &number) == 1);
		SAME(number, i);
	}
	CHECK(!fgets(line, sizeof line, file));
}

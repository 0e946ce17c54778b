/* Names of threads, and thread-local variables.
 * expect: exact */
#include "look.h"
#define N 5
static pthread_t threads[N];
static volatile int go, bad;
static __thread long own = 77;
static void *run(void *of)
{
	char name[16], now[16];
	long n = (long)of;
	snprintf(name, sizeof name, "thread number %ld", n);
	prctl(PR_SET_NAME, name);
	own += n;
	while (!go)
		rest(0.3);
	prctl(PR_GET_NAME, now);
	if (strcmp(name, now) || own != 77 + n)
		bad = 1;
	return NULL;
}
static void make(void)
{
	prctl(PR_SET_NAME, "a (new) name");
	for (long i = 0; i < N; i++)
		MUST(-pthread_create(&threads[i], NULL, run, (void *)i));
	rest(0.3);
}
static void check(void)
{
	CHECK(!strcmp(line_of("/proc/self/status", "Name"), "a (new) name"));
	SAME(atoi(line_of("/proc/self/status", "Threads")), N + 1);
	go = 1;
	for (int i = 0; i < N; i++)
		pthread_join(threads[i], NULL);
	SAME(bad, 0);
	SAME(own, 77);
}

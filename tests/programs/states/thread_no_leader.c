/* A process whose first thread has ended before the others.
 * expect: exact
 * live: no: a leader that is dead cannot be looked at */
#include "look.h"
static pthread_t first;
static void *run(void *unused)
{
	pthread_join(first, NULL);
	say("READY %d", getpid());
	struct stat before, now;
	fstat(OUT, &before);
	do {
		rest(0.4);
		fstat(OUT, &now);
	} while (now.st_size == before.st_size);
	/* It is as it was: dead, and not to be had as long as this thread lives. */
	CHECK(!strncmp(line_of("/proc/self/status", "State"), "Z", 1));
	CHECK(getpid() != gettid());
	say("PASS");
	_exit(0);
	return unused;
}
static void make(void)
{
	pthread_t thread;
	first = pthread_self();
	MUST(-pthread_create(&thread, NULL, run, NULL));
	pthread_exit(NULL);
}
static void check(void) {}

/* Threads that are in a system call when the host dies. */
#pragma once
#include "state.h"

/* A thread that makes one call, in which it is when the host dies. */
struct caller {
	pthread_t thread;
	long (*call)(void);
	volatile pid_t tid;
	volatile int done;
	long result;
	int error;
};

static void *caller_main(void *of)
{
	struct caller *c = of;
	c->tid = syscall(SYS_gettid);
	c->result = c->call();
	c->error = errno;
	c->done = 1;
	return NULL;
}

/* Starts it, and waits until it sleeps in the call with that number. */
UNUSED static void begin(struct caller *c, long (*call)(void), long number)
{
	char path[64], text[256] = "";
	c->call = call;
	MUST(-pthread_create(&c->thread, NULL, caller_main, c));
	for (int i = 0; i < 1000 && strtol(text, NULL, 10) != number; i++) {
		rest(0.01);
		snprintf(path, sizeof path, "/proc/self/task/%d/syscall", c->tid);
		FILE *file = fopen(path, "re");
		if (!file || !fgets(text, sizeof text, file) || text[0] == 'r')
			strcpy(text, "-9");
		if (file)
			fclose(file);
	}
	MUST(strtol(text, NULL, 10) == number ? 0 : -1);
}

/* It must be in its call still. */
UNUSED static void still_in(struct caller *c)
{
	rest(0.3);
	if (c->done)
		FAIL("the call came back with %ld (errno %d)", c->result, c->error);
}

/* It must come back with this; -1 and an error number where it failed. */
UNUSED static void back_with(struct caller *c, long result, int error)
{
	for (int i = 0; i < 1000 && !c->done; i++)
		rest(0.02);
	if (!c->done)
		FAIL("the call does not come back");
	if (c->result != result || (result == -1 && c->error != error))
		FAIL("the call gave %ld (errno %d) and not %ld (%d)", c->result, c->error, result,
		     error);
}

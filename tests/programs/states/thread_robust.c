/* A robust mutex that a thread holds: when the thread ends, the next one is told.
 * expect: exact */
#include "state.h"
static pthread_t thread;
static pthread_mutex_t mutex;
static volatile int go, locked;
static void *run(void *unused)
{
	pthread_mutex_lock(&mutex);
	locked = 1;
	while (!go)
		rest(0.3);
	return unused;
}
static void make(void)
{
	pthread_mutexattr_t attributes;
	pthread_mutexattr_init(&attributes);
	pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
	MUST(-pthread_mutex_init(&mutex, &attributes));
	MUST(-pthread_create(&thread, NULL, run, NULL));
	while (!locked)
		rest(0.05);
}
static void check(void)
{
	SAME(pthread_mutex_trylock(&mutex), EBUSY);
	go = 1;
	pthread_join(thread, NULL);
	SAME(pthread_mutex_lock(&mutex), EOWNERDEAD);
	SAME(pthread_mutex_consistent(&mutex), 0);
	SAME(pthread_mutex_unlock(&mutex), 0);
}

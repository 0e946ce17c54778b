/* A priority-inheriting mutex, held, with a thread that waits for it.
 * expect: exact */
#include "call.h"
static struct caller c;
static pthread_mutex_t mutex;
static long call(void) { return pthread_mutex_lock(&mutex) | pthread_mutex_unlock(&mutex); }
static void make(void)
{
	pthread_mutexattr_t attributes;
	pthread_mutexattr_init(&attributes);
	pthread_mutexattr_setprotocol(&attributes, PTHREAD_PRIO_INHERIT);
	MUST(-pthread_mutex_init(&mutex, &attributes));
	MUST(-pthread_mutex_lock(&mutex));
	begin(&c, call, SYS_futex);
}
static void check(void)
{
	still_in(&c);
	SAME(pthread_mutex_unlock(&mutex), 0);
	back_with(&c, 0, 0);
	SAME(pthread_mutex_lock(&mutex), 0);
	SAME(pthread_mutex_unlock(&mutex), 0);
}

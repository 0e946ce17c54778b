/* Threads that wait for a condition and for a semaphore, and a barrier that lacks one.
 * expect: exact */
#include "state.h"
#include <semaphore.h>
static pthread_t threads[3];
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t condition = PTHREAD_COND_INITIALIZER;
static pthread_barrier_t barrier;
static sem_t semaphore;
static volatile int ready, woken;
static void *run(void *of)
{
	switch ((long)of) {
	case 0:
		pthread_mutex_lock(&mutex);
		while (!ready)
			pthread_cond_wait(&condition, &mutex);
		pthread_mutex_unlock(&mutex);
		break;
	case 1:
		while (sem_wait(&semaphore))
			;
		break;
	default:
		pthread_barrier_wait(&barrier);
	}
	__sync_fetch_and_add(&woken, 1);
	return NULL;
}
static void make(void)
{
	MUST(sem_init(&semaphore, 0, 0));
	MUST(-pthread_barrier_init(&barrier, NULL, 2));
	for (long i = 0; i < 3; i++)
		MUST(-pthread_create(&threads[i], NULL, run, (void *)i));
	rest(0.5);
}
static void check(void)
{
	rest(0.3);
	SAME(woken, 0);
	pthread_mutex_lock(&mutex);
	ready = 1;
	pthread_cond_signal(&condition);
	pthread_mutex_unlock(&mutex);
	sem_post(&semaphore);
	pthread_barrier_wait(&barrier);
	for (int i = 0; i < 3; i++)
		pthread_join(threads[i], NULL);
	SAME(woken, 3);
}

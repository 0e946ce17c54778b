/* The word that the kernel clears when a thread ends.
 * expect: exact */
#include "state.h"
static pthread_t thread;
static volatile int go;
static int *where, *of_thread;
static void *run(void *unused)
{
	if (prctl(PR_GET_TID_ADDRESS, &of_thread))
		of_thread = NULL;
	while (!go)
		rest(0.3);
	return unused;
}
static void make(void)
{
	if (prctl(PR_GET_TID_ADDRESS, &where))
		ABSENT("PR_GET_TID_ADDRESS");
	MUST(-pthread_create(&thread, NULL, run, NULL));
	rest(0.3);
}
static void check(void)
{
	int *now;
	CHECK(prctl(PR_GET_TID_ADDRESS, &now) == 0 && now == where);
	CHECK(of_thread && *of_thread > 0);
	go = 1;
	SAME(pthread_join(thread, NULL), 0);
}

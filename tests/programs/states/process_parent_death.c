/* The signal that it asked for when its parent dies: the parent died with the host.
 * expect: lost signal on the parent's death
 * live: no: procfs does not say */
#include "state.h"
static void make(void)
{
	signal(SIGUSR1, SIG_IGN);
	MUST(prctl(PR_SET_PDEATHSIG, SIGUSR1));
}
static void check(void)
{
	int signal = -1;
	CHECK(prctl(PR_GET_PDEATHSIG, &signal) == 0);
	SAME(signal, 0);
}

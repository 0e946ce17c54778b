/* Parts of a System V segment: one unmapped, one protected, one moved elsewhere, one executable.
 * expect: exact
 */
#include "state.h"
#include <sys/ipc.h>
#include <sys/shm.h>
static int id;
static char *p, *moved;
static void make(void)
{
	id = MUST(shmget(IPC_PRIVATE, 8 * PAGE, 0600));
	p = shmat(id, NULL, 0);
	MUST(p == (void *)-1 ? -1 : 0);
	fill(p, 8 * PAGE, 3);
	MUST(munmap(p + 2 * PAGE, PAGE));
	MUST(mprotect(p + 4 * PAGE, PAGE, PROT_READ));
	MUST(mprotect(p + 5 * PAGE, PAGE, PROT_READ | PROT_EXEC));
	moved = map(3 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	moved = mremap(p + 6 * PAGE, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, moved + PAGE);
	MUST(moved == MAP_FAILED ? -1 : 0);
}
static void check(void)
{
	struct shmid_ds info;
	char *all = shmat(id, NULL, 0);
	CHECK(all != (void *)-1 && filled(all, 8 * PAGE, 3));
	for (int i = 0; i < 8; i++)
		CHECK(i == 2 || !memcmp(i == 6 ? moved : p + i * PAGE, all + i * PAGE, PAGE));
	all[6 * PAGE] = 1;
	all[4 * PAGE] = 2;
	CHECK(moved[0] == 1 && p[4 * PAGE] == 2);
	SAME(msync(p + 2 * PAGE, PAGE, MS_ASYNC), -1);
	SAME(msync(p + 6 * PAGE, PAGE, MS_ASYNC), -1);
	CHECK(shmctl(id, IPC_STAT, &info) == 0);
	CHECK(info.shm_nattch >= 3);
	/* All that one attachment has left where it was goes at once; what was moved stays. */
	CHECK(shmdt(all) == 0 && shmdt(p) == 0);
	SAME(msync(p, PAGE, MS_ASYNC), -1);
	SAME(msync(p + 7 * PAGE, PAGE, MS_ASYNC), -1);
	SAME(moved[0], 1);
	CHECK(shmctl(id, IPC_STAT, &info) == 0);
	SAME(info.shm_nattch, 1);
	CHECK(shmctl(id, IPC_RMID, NULL) == 0);
}

/* A System V shared memory segment, attached twice, one time for reading.
 * expect: exact
 */
#include "state.h"
#include <sys/ipc.h>
#include <sys/shm.h>
/* Of this process alone, whoever else runs this program. */
#define KEY (0x5eed0000 + getpid())
#define SIZE (5 * PAGE + 100)
static int id;
static char *p, *q;
static void make(void)
{
	/* Not the first ID of its place. */
	for (int i = 0; i < 3; i++) {
		id = MUST(shmget(IPC_PRIVATE, 1, 0600));
		MUST(shmctl(id, IPC_RMID, NULL));
	}
	id = MUST(shmget(KEY, SIZE, IPC_CREAT | IPC_EXCL | 0640));
	p = shmat(id, NULL, 0);
	q = shmat(id, NULL, SHM_RDONLY);
	MUST(p == (void *)-1 || q == (void *)-1 ? -1 : 0);
	fill(p, 3 * PAGE, 1);
	/* Behind its end, in its last page. */
	p[5 * PAGE + 200] = 9;
}
static void check(void)
{
	struct shmid_ds info;
	CHECK(filled(p, 3 * PAGE, 1) && filled(q, 3 * PAGE, 1));
	SAME(p[5 * PAGE + 200], 9);
	p[4 * PAGE] = 7;
	SAME(q[4 * PAGE], 7);
	SAME(mprotect(q, PAGE, PROT_READ | PROT_WRITE), -1);
	/* By its ID and its key. */
	CHECK(shmctl(id, IPC_STAT, &info) == 0);
	SAME(info.shm_segsz, SIZE);
	SAME(info.shm_nattch, 2);
	SAME(info.shm_perm.mode, 0640);
	SAME(info.shm_perm.__key, KEY);
	SAME(info.shm_cpid, getpid());
	SAME(shmget(KEY, 0, 0), id);
	char *r = shmat(id, NULL, 0);
	CHECK(r != (void *)-1);
	SAME(r[4 * PAGE], 7);
	CHECK(shmdt(p) == 0 && shmdt(q) == 0 && shmdt(p) == -1);
	CHECK(shmctl(id, IPC_STAT, &info) == 0);
	SAME(info.shm_nattch, 1);
	CHECK(shmdt(r) == 0 && shmctl(id, IPC_RMID, NULL) == 0);
	CHECK(shmctl(id, IPC_STAT, &info) == -1);
}

/* System V shared memory in pages of 2 MiB, attached and filled.
 * expect: exact
 * live: no: procfs does not tell hugetlb areas from files */
#include "look.h"
#include <sys/ipc.h>
#include <sys/shm.h>
#define SIZE (2L << 20)
static int id;
static char *p;
static void make(void)
{
	id = shmget(0x5eed4000, SIZE, IPC_CREAT | IPC_EXCL | SHM_HUGETLB | 0600);
	if (id < 0)
		ABSENT("no huge pages are free");
	p = shmat(id, NULL, 0);
	MUST(p == (void *)-1 ? -1 : 0);
	fill(p, SIZE, 1);
}
static void check(void)
{
	struct shmid_ds info;
	CHECK(filled(p, SIZE, 1) && has_flag(p, "ht"));
	CHECK(shmctl(id, IPC_STAT, &info) == 0);
	SAME(info.shm_segsz, SIZE);
	SAME(info.shm_nattch, 1);
	SAME(shmget(0x5eed4000, 0, 0), id);
	char *q = shmat(id, NULL, 0);
	CHECK(q != (void *)-1 && filled(q, SIZE, 1));
	q[5] = 77;
	SAME(p[5], 77);
	CHECK(shmdt(p) == 0 && shmdt(q) == 0 && shmctl(id, IPC_RMID, NULL) == 0);
}

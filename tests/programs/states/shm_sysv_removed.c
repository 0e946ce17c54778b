/* A System V segment that was removed and lives for as long as it is attached, made by another user.
 * expect: exact
 */
#include "state.h"
#include <sys/ipc.h>
#include <sys/shm.h>
/* Of this process alone, whoever else runs this program. */
#define KEY (0x5eed0000 + getpid())
static int id;
static char *p;
static void make(void)
{
	MUST(setegid(44));
	MUST(seteuid(33));
	id = MUST(shmget(KEY, 2 * PAGE, IPC_CREAT | IPC_EXCL | 0600));
	MUST(seteuid(0));
	MUST(setegid(0));
	p = shmat(id, NULL, 0);
	MUST(p == (void *)-1 ? -1 : 0);
	MUST(shmctl(id, SHM_LOCK, NULL));
	MUST(shmctl(id, IPC_RMID, NULL));
	fill(p, 2 * PAGE, 2);
}
static void check(void)
{
	struct shmid_ds info;
	CHECK(filled(p, 2 * PAGE, 2));
	CHECK(shmctl(id, IPC_STAT, &info) == 0);
	SAME(info.shm_perm.cuid, 33);
	SAME(info.shm_perm.cgid, 44);
	SAME(info.shm_perm.uid, 33);
	SAME(info.shm_perm.mode, 0600 | SHM_DEST | SHM_LOCKED);
	SAME(info.shm_nattch, 1);
	CHECK(shmget(KEY, 0, 0) == -1 && errno == ENOENT);
	CHECK(shmdt(p) == 0);
	CHECK(shmctl(id, IPC_STAT, &info) == -1);
}

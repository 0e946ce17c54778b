/* A set of System V semaphores: values, who changed them last, and what the end of a process undoes.
 * expect: reconstructed System V semaphores
 * live: no: nothing says what a living process would undo
 */
#include "state.h"
#include <sys/ipc.h>
#include <sys/sem.h>
#include <sys/wait.h>
/* Of this process alone, whoever else runs this program. */
#define KEY (0x5eed0000 + getpid())
static int id;
static void make(void)
{
	unsigned short values[4] = { 5, 0, 32767, 1 };
	id = MUST(semget(KEY, 4, IPC_CREAT | IPC_EXCL | 0660));
	MUST(semctl(id, 0, SETALL, values));
	/* 5 - 2 by this process, and back at its end; and one up, which its end takes away. */
	struct sembuf down[] = { { 0, -2, SEM_UNDO }, { 1, 1, SEM_UNDO } };
	MUST(semop(id, down, 2));
	/* By a child, which ends without undoing. */
	pid_t child = MUST(fork());
	if (!child) {
		struct sembuf lock = { 3, -1, 0 };
		_exit(semop(id, &lock, 1) != 0);
	}
	int status;
	MUST(waitpid(child, &status, 0));
	MUST(status ? -1 : 0);
}
static void check(void)
{
	struct semid_ds info;
	unsigned short values[4];
	SAME(semget(KEY, 4, 0), id);
	CHECK(semctl(id, 0, IPC_STAT, &info) == 0);
	SAME(info.sem_nsems, 4);
	SAME(info.sem_perm.mode, 0660);
	CHECK(info.sem_otime != 0);
	CHECK(semctl(id, 0, GETALL, values) == 0);
	CHECK(values[0] == 3 && values[1] == 1 && values[2] == 32767 && values[3] == 0);
	SAME(semctl(id, 0, GETPID), getpid());
	/* As at its end: what was done with SEM_UNDO is undone. */
	CHECK(unshare(CLONE_SYSVSEM) == 0);
	CHECK(semctl(id, 0, GETALL, values) == 0);
	CHECK(values[0] == 5 && values[1] == 0 && values[2] == 32767 && values[3] == 0);
	CHECK(semctl(id, 0, IPC_RMID) == 0);
}

/* Threads that wait for a System V message, a semaphore, and for room in a queue: they wait on.
 * expect: exact
 * live: no: to be stopped interrupts semop
 */
#include "call.h"
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/sem.h>
static struct caller c, d, e;
static int queue, set, full;
static struct { long type; char text[20]; } message;
static long call(void)
{
	return msgrcv(queue, &message, sizeof message.text, 0, 0);
}
static long call_too(void)
{
	struct sembuf down = { 0, -1, 0 };
	return semop(set, &down, 1);
}
static long call_for_room(void)
{
	struct { long type; char text[60]; } m = { 5, "late" };
	return msgsnd(full, &m, sizeof m.text, 0);
}
static void make(void)
{
	struct msqid_ds info;
	struct { long type; char text[60]; } m = { 4, "early" };
	queue = MUST(msgget(IPC_PRIVATE, 0600));
	set = MUST(semget(IPC_PRIVATE, 1, 0600));
	full = MUST(msgget(IPC_PRIVATE, 0600));
	MUST(msgctl(full, IPC_STAT, &info));
	info.msg_qbytes = 100;
	MUST(msgctl(full, IPC_SET, &info));
	MUST(msgsnd(full, &m, sizeof m.text, 0));
	begin(&c, call, SYS_msgrcv);
	begin(&d, call_too, SYS_semtimedop);
	begin(&e, call_for_room, SYS_msgsnd);
}
static void check(void)
{
	struct { long type; char text[20]; } m = { 3, "hello" };
	struct { long type; char text[60]; } got;
	struct sembuf up = { 0, 1, 0 };
	rest(0.3);
	CHECK(msgsnd(queue, &m, 6, 0) == 0 && semop(set, &up, 1) == 0);
	back_with(&c, 6, 0);
	CHECK(message.type == 3 && !strcmp(message.text, "hello"));
	back_with(&d, 0, 0);
	SAME(msgrcv(full, &got, sizeof got.text, 0, IPC_NOWAIT), 60);
	CHECK(got.type == 4 && !strcmp(got.text, "early"));
	back_with(&e, 0, 0);
	SAME(msgrcv(full, &got, sizeof got.text, 0, IPC_NOWAIT), 60);
	CHECK(got.type == 5 && !strcmp(got.text, "late"));
	CHECK(!msgctl(queue, IPC_RMID, NULL) && !msgctl(full, IPC_RMID, NULL) && !semctl(set, 0, IPC_RMID));
}

/* A System V message queue with messages of several types and sizes, given to another user.
 * expect: exact
 */
#include "state.h"
#include <sys/ipc.h>
#include <sys/msg.h>
/* Of this process alone, whoever else runs this program. */
#define KEY (0x5eed0000 + getpid())
struct message { long type; char text[8000]; };
static int id;
static void put(long type, size_t len)
{
	static struct message m;
	m.type = type;
	fill(m.text, len & ~7UL, type);
	MUST(msgsnd(id, &m, len, 0));
}
static void received(long wanted, long type, size_t len)
{
	static struct message m, should;
	SAME(msgrcv(id, &m, sizeof m.text, wanted, IPC_NOWAIT), len);
	SAME(m.type, type);
	fill(should.text, len & ~7UL, type);
	CHECK(!memcmp(m.text, should.text, len & ~7UL));
}
static void make(void)
{
	struct msqid_ds info;
	id = MUST(msgget(KEY, IPC_CREAT | IPC_EXCL | 0620));
	put(9, 16);
	put(7, 8000);
	put(3, 0);
	put(7, 24);
	put(1L << 40, 4048);
	received(9, 9, 16);
	MUST(msgctl(id, IPC_STAT, &info));
	info.msg_perm.uid = 33;
	info.msg_perm.mode = 0600;
	info.msg_qbytes = 15000;
	MUST(msgctl(id, IPC_SET, &info));
}
static void check(void)
{
	struct msqid_ds info;
	SAME(msgget(KEY, 0), id);
	CHECK(msgctl(id, IPC_STAT, &info) == 0);
	SAME(info.msg_qnum, 4);
	SAME(info.msg_qbytes, 15000);
	SAME(info.msg_perm.uid, 33);
	SAME(info.msg_perm.cuid, 0);
	SAME(info.msg_perm.mode, 0600);
	SAME(info.msg_lspid, getpid());
	SAME(info.msg_lrpid, getpid());
	received(3, 3, 0);
	received(0, 7, 8000);
	received(0, 7, 24);
	received(0, 1L << 40, 4048);
	CHECK(msgctl(id, IPC_RMID, NULL) == 0);
}

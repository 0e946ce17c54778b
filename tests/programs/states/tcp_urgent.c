/* An urgent byte that nobody has read, which no call can put back, and one that comes in its turn
 * (SO_OOBINLINE), which does; there is no mark any more.
 * expect: lost urgent byte
 * may: urgent byte
 * live: no: nobody can look at it without taking it
 */
#include "tcp.h"
static int apart[2], in_line[2];
static void make(void)
{
	int on = 1;
	tcp_pair(AF_INET, 7745, apart);
	MUST(write(apart[0], "before", 6));
	MUST(send(apart[0], "!", 1, MSG_OOB));
	MUST(write(apart[0], "behind", 6));
	tcp_pair(AF_INET, 7746, in_line);
	MUST(setsockopt(in_line[1], SOL_SOCKET, SO_OOBINLINE, &on, sizeof on));
	MUST(write(in_line[0], "before", 6));
	MUST(send(in_line[0], "!", 1, MSG_OOB));
	MUST(write(in_line[0], "behind", 6));
	rest(0.2);
}
static void check(void)
{
	char got[16];
	int mark = 7;
	CHECK(recv(apart[1], got, 16, MSG_OOB) == -1 && errno == EINVAL);
	CHECK(read_all(apart[1], got, 12) && !memcmp(got, "beforebehind", 12));
	CHECK(ioctl(apart[1], SIOCATMARK, &mark) == 0);
	SAME(mark, 0);
	CHECK(talks(apart[0], apart[1]) && talks(apart[1], apart[0]));
	CHECK(read_all(in_line[1], got, 13) && !memcmp(got, "before!behind", 13));
	CHECK(talks(in_line[0], in_line[1]) && talks(in_line[1], in_line[0]));
	/* Another one comes as ever. */
	CHECK(send(apart[0], "?", 1, MSG_OOB) == 1);
	rest(0.1);
	CHECK(recv(apart[1], got, 16, MSG_OOB) == 1 && got[0] == '?');
}

/* Threads that wait for all of their bytes (MSG_WAITALL), of which some have come:
 * recvfrom(2) from a UNIX stream, recvmsg(2) into several buffers from a TCP connection.
 * expect: reconstructed stay mapped
 * live: no: a call that is stopped returns with what it has moved */
#include "stream.h"
static struct caller c, d;
static int unix_pair[2], tcp[2];
static unsigned char got[2][9000];
static struct iovec vector[3] = { { got[1], 1000 }, { got[1] + 1000, 3000 }, { got[1] + 4000, 5000 } };
static struct msghdr message = { .msg_iov = vector, .msg_iovlen = 3, .msg_flags = 0x55 };
static long call(void) { return recv(unix_pair[0], got[0], 9000, MSG_WAITALL); }
static long call_too(void) { return recvmsg(tcp[0], &message, MSG_WAITALL); }
static void make(void)
{
	stream_begin();
	MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, unix_pair));
	tcp_pair(AF_INET, 7733, tcp);
	begin(&c, call, SYS_recvfrom);
	begin(&d, call_too, SYS_recvmsg);
	MUST(write(unix_pair[1], stream_out, 2500));
	MUST(write(tcp[1], stream_out, 2500));
	settle();
}
static void check(void)
{
	still_in(&c);
	still_in(&d);
	CHECK(write(unix_pair[1], stream_out + 2500, 6500) == 6500);
	CHECK(write(tcp[1], stream_out + 2500, 6500) == 6500);
	back_with(&c, 9000, 0);
	back_with(&d, 9000, 0);
	CHECK(!memcmp(got[0], stream_out, 9000) && !memcmp(got[1], stream_out, 9000));
	SAME(message.msg_flags, 0);
	CHECK(message.msg_iov == vector);
	SAME(message.msg_iovlen, 3);
}

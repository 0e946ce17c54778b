/* Threads in sendmmsg(2) and recvmmsg(2): some of their messages have gone, or come. All have
 * the same buffer on the way out. And sendmmsg to a stream, in the middle of one.
 * expect: reconstructed stay mapped
 * live: no: a call that is stopped returns with what it has moved */
#include "stream.h"
#define COUNT 60
static struct caller c, d, e;
static int out[2], in[2], stream[2];
static char packet[4000] = "packet", got[COUNT][100];
static struct mmsghdr sent[COUNT], received[COUNT], streamed[3];
static struct iovec one = { packet, sizeof packet }, each[COUNT], parts[3];
static long call(void) { return sendmmsg(out[0], sent, COUNT, 0); }
static long call_too(void) { return recvmmsg(in[0], received, 5, 0, NULL); }
static long call_stream(void) { return sendmmsg(stream[0], streamed, 3, 0); }
static void make(void)
{
	stream_begin();
	MUST(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, out));
	MUST(socketpair(AF_UNIX, SOCK_DGRAM, 0, in));
	MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, stream));
	for (int i = 0; i < COUNT; i++) {
		sent[i].msg_hdr = (struct msghdr){ .msg_iov = &one, .msg_iovlen = 1 };
		each[i] = (struct iovec){ got[i], sizeof got[i] };
		received[i].msg_hdr = (struct msghdr){ .msg_iov = &each[i], .msg_iovlen = 1 };
	}
	for (int i = 0; i < 3; i++) {
		parts[i] = (struct iovec){ stream_out + i * 100000L, i == 2 ? 800000 : 100000 };
		streamed[i].msg_hdr = (struct msghdr){ .msg_iov = &parts[i], .msg_iovlen = 1 };
	}
	begin(&c, call, SYS_sendmmsg);
	begin(&d, call_too, SYS_recvmmsg);
	begin(&e, call_stream, SYS_sendmmsg);
	MUST(write(in[1], "first", 5));
	MUST(write(in[1], "second", 6));
	settle();
}
static void check(void)
{
	still_in(&c);
	still_in(&d);
	still_in(&e);
	CHECK(write(in[1], "third", 5) == 5);
	CHECK(write(in[1], "fourth", 6) == 6);
	CHECK(write(in[1], "fifth", 5) == 5);
	back_with(&d, 5, 0);
	const char *words[] = { "first", "second", "third", "fourth", "fifth" };
	for (int i = 0; i < 5; i++) {
		CHECK(!strcmp(got[i], words[i]));
		SAME(received[i].msg_len, strlen(words[i]));
	}
	for (int i = 0; i < COUNT; i++) {
		char here[5000];
		CHECK(recv(out[1], here, sizeof here, 0) == sizeof packet && !strcmp(here, "packet"));
	}
	back_with(&c, COUNT, 0);
	CHECK(recv(out[1], got, sizeof got, MSG_DONTWAIT) == -1 && errno == EAGAIN);
	for (int i = 0; i < COUNT; i++)
		SAME(sent[i].msg_len, sizeof packet);
	stream_end(stream[1], 0, 1000000);
	back_with(&e, 3, 0);
	for (int i = 0; i < 3; i++) {
		SAME(streamed[i].msg_len, parts[i].iov_len);
		CHECK(streamed[i].msg_hdr.msg_iov == &parts[i]);
	}
}

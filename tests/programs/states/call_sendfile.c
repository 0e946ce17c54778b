/* Threads in sendfile(2) from a file to a UNIX stream, at the file's position, and to a TCP
 * connection, at one of the caller's: half of it is done.
 * expect: reconstructed stay mapped
 * live: no: a call that is stopped returns with what it has moved */
#include "stream.h"
#include <sys/sendfile.h>
#define TOTAL 2900000L
static struct caller c, d;
static int file, other, unix_pair[2], tcp[2];
static off_t offset = 1000;
static long call(void) { return sendfile(unix_pair[0], file, NULL, TOTAL); }
static long call_too(void) { return sendfile(tcp[0], other, &offset, TOTAL); }
static void make(void)
{
	int room = 100000;
	stream_begin();
	file = MUST(open("file", O_CREAT | O_RDWR, 0600));
	MUST(write(file, stream_out, MUCH));
	MUST(fsync(file));
	MUST(lseek(file, 500, SEEK_SET));
	other = MUST(open("file", O_RDONLY));
	MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, unix_pair));
	tcp_pair(AF_INET, 7735, tcp);
	MUST(setsockopt(tcp[0], SOL_SOCKET, SO_SNDBUF, &room, sizeof room));
	begin(&c, call, SYS_sendfile);
	begin(&d, call_too, SYS_sendfile);
	settle();
}
static void check(void)
{
	still_in(&c);
	still_in(&d);
	stream_end(unix_pair[1], 500, TOTAL);
	back_with(&c, TOTAL, 0);
	SAME(lseek(file, 0, SEEK_CUR), 500 + TOTAL);
	stream_end(tcp[1], 1000, TOTAL);
	back_with(&d, TOTAL, 0);
	SAME(offset, 1000 + TOTAL);
	SAME(lseek(other, 0, SEEK_CUR), 0);
}

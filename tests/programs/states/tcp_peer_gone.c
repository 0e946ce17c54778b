/* A TCP connection with another process of the host, which is not restored: what it had
 * sent can be read, and then it has gone.
 * expect: lost which is not among
 * may: child
 */
#include "tcp.h"
static int fd;
static void make(void)
{
	int pair[2];
	tcp_pair(AF_INET, 7716, pair);
	pid_t child = MUST(fork());
	if (child == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		close(OUT);
		close(pair[0]);
		write(pair[1], "from the child", 14);
		for (;;)
			pause();
	}
	close(pair[1]);
	fd = pair[0];
	struct pollfd one = { fd, POLLIN, 0 };
	MUST(poll(&one, 1, 5000) == 1 ? 0 : -1);
	MUST(write(fd, "never read", 10));
}
static void check(void)
{
	char got[16];
	signal(SIGPIPE, SIG_IGN);
	CHECK(read_all(fd, got, 14) && !memcmp(got, "from the child", 14));
	CHECK(at_end(fd));
	/* Nobody is there: the first is answered by a reset. */
	write(fd, "x", 1);
	for (int i = 0; i < 100 && write(fd, "x", 1) == 1; i++)
		rest(0.05);
	CHECK(write(fd, "x", 1) == -1 && (errno == EPIPE || errno == ECONNRESET));
}

/* Two ends of a TCP connection that both write all the time and look at each byte that
 * they read. Each logs how far it has come; a byte that is missing or comes twice is BAD.
 *
 *     stream pair DIR               both ends, two processes, over loopback
 *     stream connect ADDRESS PORT DIR
 *     stream peer SOCKET DIR        a machine of its own: a network namespace, whose Ethernet
 *                                   is the stream of frames (4 bytes of length each) of
 *                                   whoever connects to SOCKET; answers at 10.77.0.1:7000
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define CHUNK 16384
/* The reader is slower than the writer: buffers are full. */
#define PAUSE_NS 4000000L

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static unsigned char byte_of(unsigned long seed, unsigned long i)
{
	return ((i + seed * 7919) * 0x9e3779b97f4a7c15UL) >> 40;
}

static FILE *open_log(const char *dir, const char *name)
{
	char path[512];
	snprintf(path, sizeof path, "%s/%s", dir, name);
	FILE *log = fopen(path, "ae");
	if (!log)
		die(path);
	setvbuf(log, NULL, _IOLBF, 0);
	return log;
}

/* Says and checks for ever; comes back when the connection ends. */
static void talk(int fd, unsigned long own, unsigned long other, FILE *log)
{
	unsigned long sent = 0, got = 0, said = 0;
	unsigned char bytes[CHUNK];
	fcntl(fd, F_SETFL, O_NONBLOCK);
	for (;;) {
		struct pollfd one = { fd, POLLIN | POLLOUT, 0 };
		poll(&one, 1, 1000);
		for (int i = 0; i < CHUNK; i++)
			bytes[i] = byte_of(own, sent + i);
		ssize_t n = send(fd, bytes, CHUNK, MSG_NOSIGNAL);
		if (n > 0)
			sent += n;
		else if (n < 0 && errno != EAGAIN && errno != EINTR) {
			fprintf(log, "END send: %s behind %lu %lu\n", strerror(errno), sent, got);
			return;
		}
		n = recv(fd, bytes, CHUNK, 0);
		for (ssize_t i = 0; i < n; i++)
			if (bytes[i] != byte_of(other, got + i)) {
				fprintf(log, "BAD byte %lu of what came\n", got + i);
				exit(1);
			}
		if (n > 0)
			got += n;
		else if (n == 0 || (errno != EAGAIN && errno != EINTR)) {
			fprintf(log, "END recv: %s behind %lu %lu\n", n ? strerror(errno) : "end", sent, got);
			return;
		}
		if (sent + got - said > 1 << 19) {
			said = sent + got;
			fprintf(log, "sent %lu got %lu\n", sent, got);
		}
		struct timespec pause = { 0, PAUSE_NS };
		nanosleep(&pause, NULL);
	}
}

static int server(const char *address, int port)
{
	struct sockaddr_in at = { .sin_family = AF_INET, .sin_port = htons(port) };
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), on = 1;
	inet_pton(AF_INET, address, &at.sin_addr);
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
	if (bind(fd, (void *)&at, sizeof at) || listen(fd, 5))
		die("listen");
	return fd;
}

static int client(const char *address, int port)
{
	struct sockaddr_in at = { .sin_family = AF_INET, .sin_port = htons(port) };
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	inet_pton(AF_INET, address, &at.sin_addr);
	if (connect(fd, (void *)&at, sizeof at))
		die("connect");
	return fd;
}

static int all(int fd, void *to, size_t len)
{
	for (char *at = to; len;) {
		ssize_t n = read(fd, at, len);
		if (n <= 0)
			return 0;
		at += n;
		len -= n;
	}
	return 1;
}

/* Frames from a tap to the wire, and the other way. */
static void carry(int tap, int wire)
{
	static unsigned char frame[70000];
	for (;;) {
		struct pollfd two[2] = { { tap, POLLIN, 0 }, { wire, POLLIN, 0 } };
		poll(two, 2, -1);
		if (two[0].revents) {
			ssize_t n = read(tap, frame + 4, sizeof frame - 4);
			unsigned len = htonl(n > 0 ? n : 0);
			memcpy(frame, &len, 4);
			if (n > 0 && send(wire, frame, n + 4, MSG_NOSIGNAL) != n + 4)
				return;
		}
		if (two[1].revents) {
			unsigned len;
			if (!all(wire, &len, 4))
				return;
			len = ntohl(len);
			if (len > sizeof frame || !all(wire, frame, len))
				return;
			if (write(tap, frame, len) < 0)
				perror("tap");
		}
	}
}

static int make_tap(void)
{
	struct ifreq request = { .ifr_flags = IFF_TAP | IFF_NO_PI };
	struct sockaddr_in at = { .sin_family = AF_INET };
	int tap = open("/dev/net/tun", O_RDWR | O_CLOEXEC), any = socket(AF_INET, SOCK_DGRAM, 0);
	strcpy(request.ifr_name, "peer0");
	if (tap < 0 || ioctl(tap, TUNSETIFF, &request))
		die("/dev/net/tun");
	inet_pton(AF_INET, "10.77.0.1", &at.sin_addr);
	memcpy(&request.ifr_addr, &at, sizeof at);
	if (ioctl(any, SIOCSIFADDR, &request))
		die("SIOCSIFADDR");
	inet_pton(AF_INET, "255.255.255.0", &at.sin_addr);
	memcpy(&request.ifr_addr, &at, sizeof at);
	if (ioctl(any, SIOCSIFNETMASK, &request))
		die("SIOCSIFNETMASK");
	request.ifr_flags = IFF_UP | IFF_RUNNING;
	if (ioctl(any, SIOCSIFFLAGS, &request))
		die("SIOCSIFFLAGS");
	close(any);
	return tap;
}

static void peer(const char *path, const char *dir)
{
	struct sockaddr_un at = { AF_UNIX, "" };
	if (unshare(CLONE_NEWNET) && unshare(CLONE_NEWUSER | CLONE_NEWNET))
		die("unshare");
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	int tap = make_tap(), listener = server("10.77.0.1", 7000);
	strncpy(at.sun_path, path, sizeof at.sun_path - 1);
	int wires = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	unlink(path);
	if (bind(wires, (void *)&at, sizeof at) || listen(wires, 1))
		die(path);
	if (fork() == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		int fd = accept(listener, NULL, NULL);
		talk(fd, 2, 1, open_log(dir, "peer"));
		exit(0);
	}
	close(listener);
	puts("ready");
	fflush(stdout);
	for (;;) {
		int wire = accept(wires, NULL, NULL);
		if (wire < 0)
			die("accept");
		carry(tap, wire);
		close(wire);
	}
}

int main(int argc, char **argv)
{
	signal(SIGPIPE, SIG_IGN);
	if (argc == 3 && !strcmp(argv[1], "pair")) {
		int listener = server("127.0.0.1", 7001);
		if (fork() == 0) {
			close(listener);
			talk(client("127.0.0.1", 7001), 3, 4, open_log(argv[2], "client"));
			return 0;
		}
		int fd = accept(listener, NULL, NULL);
		talk(fd, 4, 3, open_log(argv[2], "server"));
		wait(NULL);
	} else if (argc == 5 && !strcmp(argv[1], "connect")) {
		talk(client(argv[2], atoi(argv[3])), 1, 2, open_log(argv[4], "client"));
	} else if (argc == 4 && !strcmp(argv[1], "peer")) {
		peer(argv[2], argv[3]);
	} else {
		return 2;
	}
	return 0;
}

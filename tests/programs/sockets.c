/* Holds sockets of all kinds and a pseudo-terminal, serves whoever comes, and
 * says in its log what it sees. Output as living.c's, and besides:
 *   saw NAME end    a connection has ended
 * Its other end of the connections is a child, which is not restored. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <pty.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

static int log_fd;

static void say(const char *text)
{
	if (write(log_fd, text, strlen(text)) < 0)
		_exit(1);
}

static void need(int good, const char *what)
{
	if (!good) {
		char line[200];
		snprintf(line, sizeof line, "BAD %s: %s\n", what, strerror(errno));
		say(line);
		_exit(1);
	}
}

/* A socket bound to the loopback address; its port goes to DIR/NAME. */
static int bound(const char *dir, const char *name, int family, int type)
{
	struct sockaddr_in6 six = { .sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT };
	struct sockaddr_in four = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	struct sockaddr *at = family == AF_INET ? (void *)&four : (void *)&six;
	socklen_t len = family == AF_INET ? sizeof four : sizeof six;
	int fd = socket(family, type, 0), one = 1, size = 100000;
	need(fd >= 0, "socket");
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
	setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof one);
	setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &size, sizeof size);
	need(bind(fd, at, len) == 0, "bind");
	need(getsockname(fd, at, &len) == 0, "getsockname");
	if (type == SOCK_STREAM)
		need(listen(fd, 7) == 0, "listen");
	char path[300], text[20];
	snprintf(path, sizeof path, "%s/%s", dir, name);
	snprintf(text, sizeof text, "%d", ntohs(family == AF_INET ? four.sin_port : six.sin6_port));
	int file = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
	need(write(file, text, strlen(text)) > 0, "write");
	close(file);
	return fd;
}

static int unix_listener(const char *dir)
{
	struct sockaddr_un at = { .sun_family = AF_UNIX };
	snprintf(at.sun_path, sizeof at.sun_path, "%s/socket", dir);
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);
	need(bind(fd, (void *)&at, sizeof at) == 0 && listen(fd, 5) == 0, "unix");
	return fd;
}

/* A child connects to a listener, sends half a word, and sleeps. */
static int connected(int listener)
{
	struct sockaddr_storage at;
	socklen_t len = sizeof at;
	need(getsockname(listener, (void *)&at, &len) == 0, "getsockname");
	pid_t child = fork();
	if (child == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		int fd = socket(at.ss_family, SOCK_STREAM, 0);
		close_range(4, fd - 1, 0);
		if (connect(fd, (void *)&at, len) || write(fd, "ha", 2) != 2)
			_exit(1);
		for (;;)
			pause();
	}
	int fd = accept(listener, 0, 0);
	char half[3] = "";
	need(fd >= 0 && read(fd, half, 2) == 2 && strcmp(half, "ha") == 0, "accept");
	return fd;
}

int main(int argc, char **argv)
{
	(void)argc;
	char path[256];
	close_range(3, ~0u, 0);
	signal(SIGPIPE, SIG_IGN);
	signal(SIGCHLD, SIG_IGN);
	snprintf(path, sizeof path, "%s/log", argv[1]);
	log_fd = open(path, O_WRONLY | O_CREAT | O_APPEND, 0600);
	enum { TCP4, TCP6, UNIX, LISTENERS, UDP = LISTENERS, UDP6, PTY, ON4, ON6, ONUNIX, ALL };
	static const char *names[ALL] = { "tcp4", "tcp6", "unix", "udp", "udp6", "pty", "on4", "on6", "onunix" };
	struct pollfd fds[ALL + 16] = { 0 };
	fds[TCP4].fd = bound(argv[1], "tcp4", AF_INET, SOCK_STREAM);
	fds[TCP6].fd = bound(argv[1], "tcp6", AF_INET6, SOCK_STREAM);
	fds[UNIX].fd = unix_listener(argv[1]);
	fds[UDP].fd = bound(argv[1], "udp", AF_INET, SOCK_DGRAM);
	fds[UDP6].fd = bound(argv[1], "udp6", AF_INET6, SOCK_DGRAM);
	struct ip_mreqn group = { .imr_multiaddr.s_addr = inet_addr("239.1.2.3"), .imr_ifindex = 1 };
	need(setsockopt(fds[UDP].fd, IPPROTO_IP, IP_ADD_MEMBERSHIP, &group, sizeof group) == 0, "group");
	int slave;
	struct winsize window = { 33, 99, 0, 0 };
	need(openpty(&fds[PTY].fd, &slave, 0, 0, &window) == 0, "openpty");
	struct termios raw;
	tcgetattr(slave, &raw);
	cfmakeraw(&raw);
	tcsetattr(slave, TCSANOW, &raw);
	snprintf(path, sizeof path, "%s/pty", argv[1]);
	need(symlink(ttyname(slave), path) == 0, "symlink");
	close(slave);
	fds[ON4].fd = connected(fds[TCP4].fd);
	fds[ON6].fd = connected(fds[TCP6].fd);
	fds[ONUNIX].fd = connected(fds[UNIX].fd);
	int count = ALL;
	for (int i = 0; i < ALL; i++)
		fds[i].events = POLLIN;
	for (unsigned long tick = 1;; tick++) {
		char line[200], in[100];
		struct timespec t;
		poll(fds, count, 20);
		for (int i = 0; i < count; i++) {
			if (i < LISTENERS && fds[i].revents & POLLIN && count < ALL + 16) {
				fds[count].fd = accept(fds[i].fd, 0, 0);
				fds[count++].events = POLLIN;
			} else if ((i == UDP || i == UDP6) && fds[i].revents & POLLIN) {
				struct sockaddr_in6 from;
				socklen_t len = sizeof from;
				ssize_t n = recvfrom(fds[i].fd, in, sizeof in, 0, (void *)&from, &len);
				if (n > 0)
					sendto(fds[i].fd, in, n, 0, (void *)&from, len);
			} else if (fds[i].revents & (POLLIN | POLLHUP | POLLERR) && i >= PTY) {
				ssize_t n = read(fds[i].fd, in, sizeof in);
				if (n > 0 && write(fds[i].fd, in, n) != n)
					need(0, "echo");
				if (n <= 0 && i != PTY) {
					close(fds[i].fd);
					fds[i].fd = -1;
					snprintf(line, sizeof line, "saw %s end\n", i < ALL ? names[i] : "client");
					say(line);
				}
			}
		}
		struct timespec nap = { 0, 10000000 };
		nanosleep(&nap, 0);
		clock_gettime(CLOCK_MONOTONIC, &t);
		snprintf(line, sizeof line, "tick %lu pid %d mono %lu spins %lu\n", tick, (int)getpid(),
			 t.tv_sec * 1000000000ul + t.tv_nsec, tick);
		say(line);
	}
}

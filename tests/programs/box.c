/* Containers made of nothing but system calls, a process that lives in one, and what looks at both.
 *
 *     box start NAME ROOT [user] [init] [PROGRAM ARGUMENT…]
 *         mount, PID, network, UTS, IPC and cgroup namespaces (and a user namespace) with ROOT as the
 *         root directory, in the cgroup NAME, with the host name NAME; in it PID 1, which reaps, and
 *         PROGRAM as PID 42, or with `init` PROGRAM as PID 1. Says the PID of PID 1 on the host.
 *         $CGROUPS is where the unified hierarchy is mounted, /sys/fs/cgroup without it. Some of /proc
 *         is hidden or read-only, as runtimes have it, but for that of a user namespace, where the
 *         kernel would let nobody mount another then.
 *     box net NAME [PROGRAM ARGUMENT…]
 *         a network namespace as `ip netns add` makes it, and PROGRAM in it as by `ip netns exec`.
 *         Says PROGRAM's PID.
 *     box lone PROGRAM ARGUMENT…
 *         PROGRAM as PID 1 of a PID namespace, with a mount namespace that has the host's files and a
 *         /proc of its own. Says its PID on the host.
 *     box inmate NAME
 *         counts, in memory of its own and in a System V segment, into /job/log, and answers at
 *         /run/inmate.sock and at port 7070 of 127.0.0.1. $BASE goes before its paths, $KEY is added to
 *         the segment's key.
 *     box talker NAME
 *         the same, and each number goes through a TCP connection with itself, in which one always waits
 *     box idle NAME           nothing
 *     box note NAME           writes the file of an inmate on the tmpfs, and ends
 *     box ask PATH            what the inmate answers at a socket's path
 *     box tcp PID             what it answers at its port, asked from the network namespace of PID
 *     box segment PID         the count in the segment, in the IPC namespace of PID */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <netinet/in.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/ipc.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define KEY 0x77
#define PORT 7070
#define PID 42
/* What 0 of a user namespace is on the host. */
#define USERS 100000
#define GROUPS 200000

static void die(const char *what)
{
	fprintf(stderr, "box: %s: %m\n", what);
	exit(1);
}

#define MUST(x) ({ long r_ = (long)(x); if (r_ < 0) die(#x); r_; })

static void put(const char *path, const char *format, ...)
{
	char text[200];
	va_list args;
	va_start(args, format);
	int len = vsnprintf(text, sizeof text, format, args);
	va_end(args);
	int fd = open(path, O_WRONLY);
	if (fd < 0 || write(fd, text, len) != len)
		die(path);
	close(fd);
}

static void lo_up(void)
{
	struct ifreq lo = { .ifr_name = "lo", .ifr_flags = IFF_UP | IFF_RUNNING };
	int fd = MUST(socket(AF_INET, SOCK_DGRAM, 0));
	MUST(ioctl(fd, SIOCSIFFLAGS, &lo));
	close(fd);
}

/* As a runtime hides parts of /proc, and lets others only be read. */
static void mask(void)
{
	MUST(mount("/job", "/proc/driver", NULL, MS_BIND, NULL));
	MUST(mount("/proc/sys/kernel", "/proc/sys/kernel", NULL, MS_BIND, NULL));
	MUST(mount(NULL, "/proc/sys/kernel", NULL, MS_REMOUNT | MS_BIND | MS_RDONLY, NULL));
}

/* PID 1 of the container. */
static void first(const char *name, const char *root, int user, int lead, char **program)
{
	MUST(prctl(PR_SET_PDEATHSIG, 0));
	MUST(setsid());
	MUST(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL));
	MUST(mount(root, root, NULL, MS_BIND | MS_REC, NULL));
	MUST(chdir(root));
	MUST(mount(".", "/", NULL, MS_MOVE, NULL));
	MUST(chroot("."));
	MUST(chdir("/"));
	MUST(mount("proc", "/proc", "proc", 0, NULL));
	MUST(mount("tmp", "/tmp", "tmpfs", 0, "size=4m"));
	MUST(sethostname(name, strlen(name)));
	lo_up();
	if (program[0] && !lead) {
		put("/proc/sys/kernel/ns_last_pid", "%d", PID - 1);
		pid_t pid = MUST(fork());
		if (!pid) {
			MUST(setsid());
			execv(program[0], program);
			die(program[0]);
		}
	}
	if (!user)
		mask();
	int null = MUST(open("/job/null", O_RDWR | O_CREAT, 0600));
	for (int fd = 0; fd < 3; fd++)
		MUST(dup2(null, fd));
	close(null);
	if (program[0] && lead) {
		execv(program[0], program);
		die(program[0]);
	}
	for (;;)
		if (wait(NULL) < 0)
			pause();
}

static int start(char **args)
{
	const char *name = args[0], *root = args[1];
	char path[200];
	int user = args[2] && !strcmp(args[2], "user");
	int lead = args[2 + user] && !strcmp(args[2 + user], "init");
	char **program = args + 2 + user + lead;
	int go[2], up[2];
	MUST(pipe(go));
	MUST(pipe(up));
	const char *cgroups = getenv("CGROUPS") ?: "/sys/fs/cgroup";
	snprintf(path, sizeof path, "%s/%s", cgroups, name);
	if (mkdir(path, 0755) && errno != EEXIST)
		die(path);
	strcat(path, "/cgroup.procs");
	const char *theirs[] = { "proc", "run", "tmp", "job" };
	for (int i = 0; user && i < 4; i++) {
		char dir[300];
		snprintf(dir, sizeof dir, "%s/%s", root, theirs[i]);
		MUST(chown(dir, USERS, GROUPS));
	}
	pid_t child = MUST(fork());
	if (!child) {
		char c;
		put(path, "0");
		if (user)
			MUST(unshare(CLONE_NEWUSER));
		MUST(write(up[1], "u", 1));
		MUST(read(go[0], &c, 1));
		if (user) {
			MUST(setresgid(0, 0, 0));
			MUST(setresuid(0, 0, 0));
		}
		MUST(unshare(CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWUTS | CLONE_NEWIPC |
			     CLONE_NEWCGROUP));
		pid_t init = MUST(fork());
		if (!init) {
			close(go[0]), close(go[1]), close(up[0]), close(up[1]);
			first(name, root, user, lead, program);
		}
		printf("%d\n", init);
		exit(0);
	}
	char c;
	MUST(read(up[0], &c, 1));
	if (user) {
		snprintf(path, sizeof path, "/proc/%d/uid_map", child);
		put(path, "0 %d 65536", USERS);
		snprintf(path, sizeof path, "/proc/%d/gid_map", child);
		put(path, "0 %d 65536", GROUPS);
	}
	MUST(write(go[1], "g", 1));
	int status;
	MUST(waitpid(child, &status, 0));
	/* Until it is there. */
	usleep(500000);
	return WEXITSTATUS(status);
}

/* In a child that nobody waits for, when it has its parent for good. */
static int run(char **program)
{
	pid_t parent = getpid(), pid = MUST(fork());
	if (!pid) {
		MUST(setsid());
		while (getppid() == parent)
			usleep(10000);
		execv(program[0], program);
		die(program[0]);
	}
	printf("%d\n", pid);
	return 0;
}

static int net(char **args)
{
	char path[200];
	mkdir("/run/netns", 0755);
	snprintf(path, sizeof path, "/run/netns/%s", args[0]);
	close(MUST(open(path, O_RDONLY | O_CREAT | O_EXCL, 0)));
	MUST(unshare(CLONE_NEWNET));
	MUST(mount("/proc/self/ns/net", path, NULL, MS_BIND, NULL));
	lo_up();
	if (!args[1])
		return 0;
	MUST(unshare(CLONE_NEWNS));
	MUST(mount(NULL, "/", NULL, MS_REC | MS_SLAVE, NULL));
	return run(args + 1);
}

static int lone(char **program)
{
	MUST(unshare(CLONE_NEWPID | CLONE_NEWNS));
	MUST(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL));
	pid_t pid = MUST(fork());
	if (!pid) {
		MUST(setsid());
		MUST(mount("proc", "/proc", "proc", 0, NULL));
		execv(program[0], program);
		die(program[0]);
	}
	printf("%d\n", pid);
	fflush(stdout);
	usleep(500000);
	return 0;
}

static int leave_note(void)
{
	MUST(write(MUST(open("/tmp/note", O_RDWR | O_CREAT, 0600)), "on a tmpfs", 10));
	return 0;
}

static unsigned long nonce;
static volatile unsigned long count;

static void answer(int fd)
{
	char text[100];
	int len = snprintf(text, sizeof text, "nonce %lx count %lu\n", nonce, count);
	if (write(fd, text, len) != len)
		_exit(9);
	close(fd);
}

static int listener(int family, void *address, size_t len)
{
	int fd = MUST(socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0));
	MUST(bind(fd, address, len));
	MUST(listen(fd, 5));
	return fd;
}

static int key(void)
{
	return KEY + atoi(getenv("KEY") ?: "0");
}

static const char *below(const char *path)
{
	static char text[4][200];
	static int turn;
	char *to = text[turn++ % 4];
	snprintf(to, 200, "%s%s", getenv("BASE") ?: "", path);
	return to;
}

/* What it sees of a /proc that is its own: parts that are hidden, that it cannot write, and itself. */
static int proc(void)
{
	char self[20] = "";
	int hidden = !access("/proc/driver/null", F_OK);
	int fd = open("/proc/sys/kernel/hostname", O_WRONLY);
	int readonly = fd < 0 && errno == EROFS;
	if (fd >= 0)
		close(fd);
	if (readlink("/proc/self", self, sizeof self - 1) < 0)
		return -1;
	return hidden | readonly << 1 | (atoi(self) == getpid()) << 2;
}

static int inmate(char **args, int talks)
{
	struct sockaddr_un name = { .sun_family = AF_UNIX };
	struct sockaddr_in port = { .sin_family = AF_INET, .sin_port = htons(PORT) };
	strcpy(name.sun_path, below("/run/inmate.sock"));
	port.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	/* Nothing of whoever started it. */
	MUST(close_range(3, ~0U, 0));
	int log = MUST(open(below("/job/log"), O_WRONLY | O_CREAT | O_APPEND, 0644));
	int note = MUST(open(below("/tmp/note"), O_RDWR | O_CREAT, 0600));
	MUST(write(note, "on a tmpfs", 10));
	int null = MUST(open(below("/job/null"), O_RDWR | O_CREAT, 0600));
	for (int fd = 0; fd < 3; fd++)
		MUST(dup2(null, fd));
	close(null);
	unlink(name.sun_path);
	struct pollfd fds[2] = {
		{ listener(AF_UNIX, &name, sizeof name), POLLIN, 0 },
		{ listener(AF_INET, &port, sizeof port), POLLIN, 0 },
	};
	int talk = -1, hear = -1;
	if (talks) {
		talk = MUST(socket(AF_INET, SOCK_STREAM, 0));
		MUST(connect(talk, (void *)&port, sizeof port));
		hear = MUST(accept(fds[1].fd, NULL, NULL));
		MUST(write(talk, (const void *)&count, sizeof count));
	}
	int id = MUST(shmget(key(), 4096, IPC_CREAT | IPC_EXCL | 0600));
	volatile unsigned long *shared = shmat(id, NULL, 0);
	int pair[2];
	MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
	MUST(write(pair[0], "waits", 5));
	int seen = proc();
	if (args[1]) {
		/* Another user of the container's. */
		MUST(setresgid(33, 33, 33));
		MUST(setresuid(33, 33, 33));
	}
	MUST(getrandom(&nonce, sizeof nonce, 0));
	for (;;) {
		struct utsname host;
		char text[300], peeked[10], noted[20];
		const char *bad = "";
		uname(&host);
		if (!getenv("BASE") && strcmp(host.nodename, args[0]))
			bad = " BAD host";
		if (shared[0] != count)
			bad = " BAD segment";
		if (shmget(key(), 0, 0) != id && !args[1])
			bad = " BAD key";
		if (recv(pair[1], peeked, 10, MSG_PEEK | MSG_DONTWAIT) != 5)
			bad = " BAD pair";
		if (pread(note, noted, sizeof noted, 0) != 10 || memcmp(noted, "on a tmpfs", 10))
			bad = " BAD note";
		if (!args[1] && access(below("/tmp/note"), F_OK))
			bad = " BAD name of the note";
		if (!args[1] && proc() != seen)
			bad = " BAD proc";
		shared[0] = ++count;
		if (talks) {
			/* The one of the last turn has waited in the connection. */
			unsigned long heard = 0;
			if (write(talk, (const void *)&count, sizeof count) != sizeof count ||
			    recv(hear, &heard, sizeof heard, MSG_WAITALL) != sizeof heard || heard != count - 1)
				bad = " BAD connection";
		}
		int len = snprintf(text, sizeof text, "nonce %lx count %lu pid %d ppid %d uid %d%s\n", nonce,
				   count, getpid(), getppid(), getuid(), bad);
		if (write(log, text, len) != len)
			_exit(8);
		if (poll(fds, 2, 100) > 0)
			for (int i = 0; i < 2; i++)
				if (fds[i].revents)
					answer(accept(fds[i].fd, NULL, NULL));
	}
}

static void enter(const char *pid, const char *kind)
{
	char path[100];
	snprintf(path, sizeof path, "/proc/%s/ns/%s", pid, kind);
	MUST(setns(MUST(open(path, O_RDONLY)), 0));
}

static int show(int fd)
{
	char text[200];
	int len = MUST(read(fd, text, sizeof text));
	MUST(write(1, text, len));
	return 0;
}

int main(int argc, char **argv)
{
	if (argc < 3)
		return 2;
	if (!strcmp(argv[1], "start") && argc > 3)
		return start(argv + 2);
	if (!strcmp(argv[1], "net"))
		return net(argv + 2);
	if (!strcmp(argv[1], "lone"))
		return lone(argv + 2);
	if (!strcmp(argv[1], "inmate") || !strcmp(argv[1], "talker"))
		return inmate(argv + 2, !strcmp(argv[1], "talker"));
	if (!strcmp(argv[1], "note"))
		return leave_note();
	if (!strcmp(argv[1], "idle"))
		return pause();
	if (!strcmp(argv[1], "ask")) {
		struct sockaddr_un name = { .sun_family = AF_UNIX };
		strncpy(name.sun_path, argv[2], sizeof name.sun_path - 1);
		int fd = MUST(socket(AF_UNIX, SOCK_STREAM, 0));
		MUST(connect(fd, (void *)&name, sizeof name));
		return show(fd);
	}
	if (!strcmp(argv[1], "tcp")) {
		struct sockaddr_in port = { .sin_family = AF_INET, .sin_port = htons(PORT) };
		port.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
		enter(argv[2], "net");
		int fd = MUST(socket(AF_INET, SOCK_STREAM, 0));
		MUST(connect(fd, (void *)&port, sizeof port));
		return show(fd);
	}
	if (!strcmp(argv[1], "segment")) {
		enter(argv[2], "ipc");
		unsigned long *shared = shmat(MUST(shmget(key(), 0, 0)), NULL, SHM_RDONLY);
		printf("count %lu\n", shared[0]);
		return 0;
	}
	return 2;
}

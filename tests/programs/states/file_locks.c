/* POSIX, open-file-description and flock locks.
 * expect: exact */
#include "state.h"
#include <sys/file.h>
#include <sys/wait.h>
static int posix, ofd, flocked;
static int open_new(const char *name) { return open(name, O_RDWR | O_CREAT, 0600); }
static void make(void)
{
	struct flock lock = { .l_type = F_WRLCK, .l_start = 10, .l_len = 20 };
	posix = MUST(open_new("posix"));
	MUST(fcntl(posix, F_SETLK, &lock));
	lock = (struct flock){ .l_type = F_RDLCK, .l_start = 100, .l_len = 0 };
	MUST(fcntl(posix, F_SETLK, &lock));
	ofd = MUST(open_new("ofd"));
	lock = (struct flock){ .l_type = F_WRLCK, .l_start = 5, .l_len = 1 };
	MUST(fcntl(ofd, F_OFD_SETLK, &lock));
	flocked = MUST(open_new("flock"));
	MUST(flock(flocked, LOCK_SH));
}
static void others(int result)
{
	struct flock lock = { .l_type = F_WRLCK, .l_start = 25, .l_len = 1 };
	int fd = open_new("posix");
	if (fcntl(fd, F_GETLK, &lock) || lock.l_type != F_WRLCK || lock.l_start != 10 || lock.l_len != 20)
		_exit(1);
	lock = (struct flock){ .l_type = F_WRLCK, .l_start = 1000, .l_len = 1 };
	if (fcntl(fd, F_GETLK, &lock) || lock.l_type != F_RDLCK || lock.l_start != 100 || lock.l_len != 0)
		_exit(2);
	lock = (struct flock){ .l_type = F_WRLCK, .l_start = 50, .l_len = 1 };
	if (fcntl(fd, F_SETLK, &lock))
		_exit(3);
	_exit(result);
}
static void check(void)
{
	int status;
	pid_t child = fork();
	if (child == 0)
		others(77);
	CHECK(waitpid(child, &status, 0) == child);
	SAME(status >> 8, 77);
	struct flock lock = { .l_type = F_RDLCK, .l_start = 5, .l_len = 1 };
	int fd = open_new("ofd");
	CHECK(fcntl(fd, F_OFD_SETLK, &lock) == -1 && errno == EAGAIN);
	lock.l_start = 6;
	CHECK(fcntl(fd, F_OFD_SETLK, &lock) == 0);
	fd = open_new("flock");
	CHECK(flock(fd, LOCK_EX | LOCK_NB) == -1 && errno == EWOULDBLOCK);
	CHECK(flock(fd, LOCK_SH | LOCK_NB) == 0);
}

/* Lives under a profile of AppArmor's with two threads, and says ten times a second what confines
 * each of them and what becomes of a look at a file that the profile denies.
 *
 * confined DIRECTORY   writes DIRECTORY/log, a line for each tick:
 *     tick N THREAD's LABEL MODE secret ERRNO, THREAD's …
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static volatile unsigned long wanted, seen;
static char other[128];

static void look(const char *name, char *line, size_t room)
{
	char label[64] = "?";
	int fd = open("/proc/thread-self/attr/current", O_RDONLY);
	ssize_t n = fd < 0 ? -1 : read(fd, label, sizeof label - 1);
	if (n > 0) {
		label[n] = 0;
		label[strcspn(label, "\n")] = 0;
	}
	close(fd);
	fd = open("/data/secret", O_RDONLY);
	snprintf(line, room, "%s %s secret %d", name, label, fd < 0 ? errno : 0);
	if (fd >= 0)
		close(fd);
}

static void *second(void *arg)
{
	(void)arg;
	for (;;) {
		while (seen == wanted)
			usleep(1000);
		look("second", other, sizeof other);
		seen = wanted;
	}
	return 0;
}

int main(int argc, char **argv)
{
	char path[256], line[128], all[512];
	pthread_t thread;
	if (argc != 2)
		return 2;
	snprintf(path, sizeof path, "%s/log", argv[1]);
	int log = open(path, O_WRONLY | O_CREAT | O_APPEND, 0644);
	if (log < 0 || pthread_create(&thread, 0, second, 0))
		return 3;
	for (unsigned long n = 1;; n++) {
		wanted = n;
		while (seen != wanted)
			usleep(1000);
		look("first", line, sizeof line);
		int len = snprintf(all, sizeof all, "tick %lu %s, %s\n", n, line, other);
		if (write(log, all, len) != len)
			return 4;
		usleep(100000);
	}
}

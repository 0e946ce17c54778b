/* Files made right before the host dies: their file system's journal has not
 * committed that they are there.
 * expect: exact
 * may: new- */
#include "state.h"
#define KEPT 160
static pthread_t thread;
static volatile long made, go;
static int fds[KEPT];
static void name_of(char *name, long number)
{
	snprintf(name, 32, "new-%ld", number);
}
static void *run(void *unused)
{
	char name[32], content[2 * PAGE + 512];
	while (!go && made < KEPT) {
		name_of(name, made);
		int fd = open(name, O_RDWR | O_CREAT | O_EXCL, 0640);
		fill(content, sizeof content, made);
		/* The second has nothing in it. */
		if (fd < 0 || (made != 1 && write(fd, content, sizeof content) != sizeof content))
			break;
		fds[made++] = fd;
		rest(3);
	}
	return unused;
}
static void make(void)
{
	MUST(-pthread_create(&thread, NULL, run, NULL));
	rest(0.3);
}
static void check(void)
{
	char name[32], content[2 * PAGE + 512];
	struct stat open_file, named;
	go = 1;
	pthread_join(thread, NULL);
	CHECK(made > 0);
	for (long i = 0; i < made; i++) {
		name_of(name, i);
		CHECK(stat(name, &named) == 0 && fstat(fds[i], &open_file) == 0);
		SAME(named.st_ino, open_file.st_ino);
		SAME(named.st_mode & 07777, 0640);
		ssize_t size = i == 1 ? 0 : sizeof content;
		SAME(named.st_size, size);
		SAME(lseek(fds[i], 0, SEEK_CUR), size);
		CHECK(pread(fds[i], content, sizeof content, 0) == size);
		CHECK(size == 0 || filled(content, sizeof content, i));
	}
}

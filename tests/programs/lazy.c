/* Much memory, each page of which knows what must be in it: restored while its memory still arrives,
 * it must not be able to tell.
 *
 * lazy DIRECTORY   writes DIRECTORY/log, a line for each tick:
 *     tick N pid P mono NANOSECONDS spins S
 * and BAD where something is wrong. When DIRECTORY/go is there, it does what programs do with memory
 * (gives it back, moves it, unmaps it, forks, has the kernel read and write it), says `did NAME` for
 * each, and at last `all read` when it has looked at every page. When DIRECTORY/exec is there it becomes
 * another program, which says `did exec`; when DIRECTORY/punch is there it gives memory back by a
 * descriptor alone, and says `did punch`.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096ul
#define WORDS (PAGE / 8)
#define MB (1ul << 20)

static int logfd;
static uint64_t nonce;
static volatile unsigned long spins;

struct region {
	const char *name;
	uint64_t id;
	uint64_t *at;
	unsigned long pages;
	/* How often each page was written; in memory that arrives, too. */
	uint8_t *version;
};

static void say(const char *format, ...)
{
	char line[256];
	va_list args;
	va_start(args, format);
	int n = vsnprintf(line, sizeof line, format, args);
	va_end(args);
	if (write(logfd, line, n) != n)
		_exit(9);
}

#define CHECK(x) do { if (!(x)) say("BAD %s (errno %d) in line %d\n", #x, errno, __LINE__); } while (0)

static uint64_t mix(uint64_t x)
{
	x ^= x >> 30;
	x *= 0xbf58476d1ce4e5b9;
	x ^= x >> 27;
	x *= 0x94d049bb133111eb;
	return x ^ x >> 31;
}

static uint64_t word(const struct region *r, unsigned long page, unsigned n)
{
	return mix(nonce ^ mix(r->id << 56 ^ (uint64_t)r->version[page] << 48 ^ page << 12 ^ n));
}

static void fill(struct region *r, unsigned long page)
{
	for (unsigned n = 0; n < WORDS; n++)
		r->at[page * WORDS + n] = word(r, page, n);
}

static int is_right(const struct region *r, unsigned long page, const uint64_t *bytes)
{
	for (unsigned n = 0; n < WORDS; n++)
		if (bytes[n] != word(r, page, n)) {
			say("BAD %s page %lu word %u is %lx and not %lx\n", r->name, page, n,
			    (long)bytes[n], (long)word(r, page, n));
			return 0;
		}
	return 1;
}

static int check(const struct region *r, unsigned long page)
{
	return is_right(r, page, r->at + page * WORDS);
}

static void check_zeros(const char *name, const uint64_t *at, unsigned long pages)
{
	for (unsigned long n = 0; n < pages * WORDS; n++)
		if (at[n]) {
			say("BAD %s: not zero in page %lu\n", name, n / WORDS);
			return;
		}
}

static struct region make_of(const char *name, unsigned long megabytes, int flags, int fd)
{
	static uint64_t ids;
	struct region r = { .name = name, .id = ++ids, .pages = megabytes * MB / PAGE };
	/* Regions that lie apart from each other, aligned as huge pages are. */
	static uintptr_t next = 0x200000000000;
	void *hint = (void *)next;
	next += megabytes * MB + 64 * MB;
	r.at = mmap(hint, megabytes * MB, PROT_READ | PROT_WRITE, flags | MAP_FIXED_NOREPLACE, fd, 0);
	if (r.at == MAP_FAILED) {
		r.pages = 0;
		return r;
	}
	madvise(r.at, megabytes * MB, MADV_HUGEPAGE);
	r.version = malloc(r.pages);
	memset(r.version, 0, r.pages);
	for (unsigned long page = 0; page < r.pages; page++)
		fill(&r, page);
	return r;
}

static struct region make(const char *name, unsigned long megabytes, int flags)
{
	return make_of(name, megabytes, flags | MAP_ANONYMOUS, -1);
}

static unsigned long now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000ul + t.tv_nsec;
}

static struct region big, shared, removed, moved, unmapped, forked, written, grown, huge, split, holes, chain, guest;
static int guest_fd;

/* At random: looks at a page, and writes it anew. */
static void *spin(void *arg)
{
	uint64_t state = (uintptr_t)arg + 1;
	/* The second half is this thread's. */
	for (;;) {
		state = mix(state + nonce);
		unsigned long page = big.pages / 2 + state % (big.pages / 2);
		check(&big, page);
		big.version[page]++;
		fill(&big, page);
		spins++;
	}
	return NULL;
}

static void *ends(void *arg)
{
	return arg;
}

static void stage(const char *name)
{
	say("did %s\n", name);
}

/* Every other 64 pages are given back. */
static void give_back(struct region *r)
{
	for (unsigned long page = 0; page < r->pages; page += 128) {
		CHECK(madvise(r->at + page * WORDS, 64 * PAGE, MADV_DONTNEED) == 0);
		check_zeros(r->name, r->at + page * WORDS, 64);
	}
	for (unsigned long page = 0; page < r->pages; page++)
		if (page % 128 < 64)
			check_zeros(r->name, r->at + page * WORDS, 1);
		else
			check(r, page);
}

/* Every other 64 pages go for everybody; half of the others out of this mapping alone. */
static void remove_shared(struct region *r)
{
	for (unsigned long page = 0; page < r->pages; page += 128) {
		CHECK(madvise(r->at + page * WORDS, 64 * PAGE, MADV_REMOVE) == 0);
		check_zeros(r->name, r->at + page * WORDS, 64);
		CHECK(madvise(r->at + (page + 64) * WORDS, 32 * PAGE, MADV_DONTNEED) == 0);
	}
	for (unsigned long page = 0; page < r->pages; page++)
		if (page % 128 < 64)
			check_zeros(r->name, r->at + page * WORDS, 1);
		else
			check(r, page);
}

static int punch(unsigned long page, unsigned long pages)
{
	return fallocate(guest_fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, page * PAGE, pages * PAGE);
}

/* As QEMU's balloon does it with a memfd. */
static void inflate(struct region *r)
{
	for (unsigned long page = 0; page < r->pages; page += 32) {
		CHECK(punch(page, 16) == 0);
		CHECK(madvise(r->at + page * WORDS, 16 * PAGE, MADV_DONTNEED) == 0);
		check_zeros(r->name, r->at + page * WORDS, 16);
		check(r, (page + r->pages / 2 + 16) % r->pages);
	}
	for (unsigned long page = 0; page < r->pages; page++)
		if (page % 32 < 16)
			check_zeros(r->name, r->at + page * WORDS, 1);
		else
			check(r, page);
}

static void move(struct region *r)
{
	/* A part of it, to where nothing was; then the whole rest. */
	unsigned long part = r->pages / 4;
	void *to = (void *)(0x300000000000 + 3 * PAGE);
	void *got = mremap(r->at + part * WORDS, part * PAGE, part * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, to);
	CHECK(got == to);
	for (unsigned long page = 0; page < r->pages; page++) {
		if (page >= part && page < 2 * part)
			is_right(r, page, (uint64_t *)got + (page - part) * WORDS);
		else
			check(r, page);
	}
}

static void grow(struct region *r)
{
	size_t size = r->pages * PAGE;
	uint64_t *got = mremap(r->at, size, 2 * size, MREMAP_MAYMOVE);
	CHECK(got != MAP_FAILED);
	check_zeros("grown", got + r->pages * WORDS, r->pages);
	r->at = got;
	for (unsigned long page = r->pages; page-- > 0;)
		check(r, page);
}

static void unmap(struct region *r)
{
	size_t size = r->pages * PAGE;
	CHECK(munmap(r->at, size) == 0);
	void *again = mmap(r->at, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	CHECK(again == r->at);
	check_zeros("unmapped", r->at, r->pages);
}

static void split_up(struct region *r)
{
	for (unsigned long page = 0; page < r->pages; page += 5)
		CHECK(mprotect(r->at + page * WORDS, PAGE, PROT_READ) == 0);
	for (unsigned long page = 0; page < r->pages; page++)
		check(r, page);
}

static void child(struct region *r)
{
	int own = 0;
	for (unsigned long page = 0; page < r->pages; page += 3) {
		check(r, page);
		r->version[page]++;
		fill(r, page);
	}
	/* And a child's child. */
	pid_t pid = fork();
	if (pid == 0) {
		for (unsigned long page = r->pages; page-- > 0;)
			check(r, page);
		_exit(0);
	}
	for (unsigned long page = 1; page < r->pages; page += 3)
		check(r, page);
	CHECK(waitpid(pid, &own, 0) == pid && own == 0);
	for (unsigned long page = 0; page < shared.pages; page += 2)
		check(&shared, page);
	_exit(0);
}

static void fork_some(struct region *r)
{
	pid_t pids[3];
	for (int n = 0; n < 3; n++) {
		pids[n] = fork();
		CHECK(pids[n] >= 0);
		if (pids[n] == 0)
			child(r);
	}
	for (unsigned long page = r->pages; page-- > 0;)
		check(r, page);
	for (int n = 0; n < 3; n++) {
		int status = 1;
		CHECK(waitpid(pids[n], &status, 0) == pids[n] && status == 0);
	}
}

static int shares_all(void *arg)
{
	struct region *r = arg;
	for (unsigned long page = 5; page < r->pages; page += 7)
		check(r, page);
	return 0;
}

static void await(pid_t pid)
{
	int status = 1;
	CHECK(pid > 0 && waitpid(pid, &status, 0) == pid && status == 0);
}

/* Children whose parents have ended, and children of all other kinds. */
static void fork_chain(struct region *r)
{
	int results[2];
	CHECK(pipe(results) == 0);
	pid_t pid = fork();
	if (pid == 0) {
		if (fork())
			_exit(0);
		if (fork() == 0) {
			for (unsigned long page = r->pages; page-- > 0;)
				check(r, page);
			_exit(write(results[1], "x", 1) != 1);
		}
		for (unsigned long page = 0; page < r->pages; page++) {
			check(r, page);
			r->version[page]++;
			fill(r, page);
		}
		_exit(write(results[1], "x", 1) != 1);
	}
	await(pid);
	pid = vfork();
	if (pid == 0) {
		execl("/bin/true", "true", NULL);
		_exit(1);
	}
	await(pid);
	char *stack = malloc(256 << 10);
	await(clone(shares_all, stack + (256 << 10), CLONE_VM | SIGCHLD, r));
	pid = fork();
	if (pid == 0) {
		check(r, 99);
		execl("/bin/true", "true", NULL);
		_exit(1);
	}
	await(pid);
	close(results[1]);
	char got;
	CHECK(read(results[0], &got, 1) == 1);
	CHECK(read(results[0], &got, 1) == 1);
	for (unsigned long page = 0; page < r->pages; page++)
		check(r, page);
}

/* More children than a process may have descriptors, one after the other. */
static void *fork_many(void *arg)
{
	struct region *r = arg;
	for (unsigned long n = 0; n < 1200; n++) {
		int status = 1;
		pid_t pid = fork();
		if (pid == 0) {
			if (n % 100 == 0)
				check(r, n % r->pages);
			_exit(0);
		}
		CHECK(pid > 0 && waitpid(pid, &status, 0) == pid && status == 0);
	}
	say("did fork many\n");
	return NULL;
}

/* The kernel reads it, and writes to it. */
static void by_the_kernel(struct region *r, const char *dir)
{
	char path[300];
	snprintf(path, sizeof path, "%s/out", dir);
	int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
	unsigned long half = r->pages / 2;
	CHECK(fd >= 0 && write(fd, r->at, half * PAGE) == (long)(half * PAGE));
	uint64_t *bytes = malloc(PAGE);
	for (unsigned long page = 0; page < half; page++) {
		CHECK(pread(fd, bytes, PAGE, page * PAGE) == PAGE);
		is_right(r, page, bytes);
	}
	/* Half a page at a time into the second half: the rest stays. */
	for (unsigned long page = half; page < r->pages; page++) {
		for (unsigned n = 0; n < WORDS / 2; n++)
			bytes[n] = word(r, page, n);
		CHECK(pwrite(fd, bytes, PAGE / 2, 0) == (long)(PAGE / 2));
		memset(bytes, 0x55, PAGE);
		CHECK(pread(fd, r->at + page * WORDS, PAGE / 2, 0) == (long)(PAGE / 2));
		check(r, page);
	}
	free(bytes);
	close(fd);
}

static void read_all(struct region *r)
{
	for (unsigned long page = r->pages; page-- > 0;)
		check(r, page);
}

int main(int argc, char **argv)
{
	char path[300], another[300], hole[300];
	snprintf(path, sizeof path, "%s/log", argv[1]);
	logfd = open(path, O_WRONLY | O_CREAT | O_APPEND, 0600);
	if (argc > 2) {
		say("did exec\n");
		for (;;)
			pause();
	}
	if (getrandom(&nonce, sizeof nonce, 0) != sizeof nonce)
		return 9;
	big = make("big", 128, MAP_PRIVATE);
	shared = make("shared", 8, MAP_SHARED);
	removed = make("removed", 16, MAP_PRIVATE);
	moved = make("moved", 16, MAP_PRIVATE);
	unmapped = make("unmapped", 8, MAP_PRIVATE);
	forked = make("forked", 16, MAP_PRIVATE);
	written = make("written", 8, MAP_PRIVATE);
	grown = make("grown", 8, MAP_PRIVATE);
	split = make("split", 4, MAP_PRIVATE);
	holes = make("holes", 16, MAP_SHARED);
	chain = make("chain", 16, MAP_PRIVATE);
	guest_fd = memfd_create("guest", 0);
	CHECK(guest_fd >= 0 && ftruncate(guest_fd, 16 * MB) == 0);
	guest = make_of("guest", 16, MAP_SHARED, guest_fd);
	huge = make("huge", 8, MAP_PRIVATE | MAP_HUGETLB);
	say("huge pages: %lu\n", huge.pages);
	snprintf(path, sizeof path, "%s/go", argv[1]);
	snprintf(another, sizeof another, "%s/exec", argv[1]);
	snprintf(hole, sizeof hole, "%s/punch", argv[1]);
	pthread_t thread;
	pthread_create(&thread, NULL, spin, NULL);
	uint64_t state = nonce;
	int gone = 0;
	for (unsigned long tick = 0;; tick++) {
		for (int n = 0; n < 20; n++) {
			state = mix(state + 1);
			unsigned long page = state % (big.pages / 2);
			check(&big, page);
			big.version[page]++;
			fill(&big, page);
		}
		say("tick %lu pid %d mono %lu spins %lu\n", tick, getpid(), now(), spins);
		usleep(10000);
		if (access(another, F_OK) == 0)
			execl(argv[0], argv[0], argv[1], "again", NULL);
		if (access(hole, F_OK) == 0) {
			CHECK(punch(guest.pages - 64, 16) == 0);
			check_zeros("guest", guest.at + (guest.pages - 64) * WORDS, 16);
			say("did punch\n");
		}
		if (gone || access(path, F_OK))
			continue;
		gone = 1;
		/* Beside all that follows, and with pages that nobody changes. */
		pthread_t forks;
		CHECK(pthread_create(&forks, NULL, fork_many, &shared) == 0);
		fork_some(&forked);
		stage("fork");
		fork_chain(&chain);
		stage("fork chain");
		inflate(&guest);
		stage("balloon");
		remove_shared(&holes);
		stage("remove");
		give_back(&removed);
		stage("give back");
		move(&moved);
		stage("move");
		unmap(&unmapped);
		stage("unmap");
		split_up(&split);
		stage("split");
		grow(&grown);
		stage("grow");
		by_the_kernel(&written, argv[1]);
		stage("kernel");
		pthread_t other;
		CHECK(pthread_create(&other, NULL, ends, &big) == 0);
		void *what;
		CHECK(pthread_join(other, &what) == 0 && what == &big);
		stage("thread");
		if (huge.pages) {
			CHECK(madvise(huge.at, 2 * MB, MADV_DONTNEED) == 0);
			check_zeros("huge", huge.at, 512);
			for (unsigned long page = 512; page < huge.pages; page++)
				check(&huge, page);
		}
		CHECK(pthread_join(forks, NULL) == 0);
		read_all(&shared);
		for (unsigned long page = 0; page < big.pages / 2; page++)
			check(&big, page);
		say("all read\n");
	}
}

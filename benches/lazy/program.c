/* What the bench of lazy memory restores: it touches pages of its memory at random, one after the
 * other, and says how that went.
 *
 * program FILE: a table in FILE: 0 the time (CLOCK_REALTIME, ns) of its last step, 1 of the first step
 * after a pause, 2 touches since then, 3 ns that the slowest took, 4... touches by powers of two of ns.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

static uint64_t now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_REALTIME, &t);
	return t.tv_sec * 1000000000ul + t.tv_nsec;
}

int main(int argc, char **argv)
{
	(void)argc;
	int fd = open(argv[1], O_RDWR);
	volatile uint64_t *table = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	/* Of this size here; whoever restores it makes it larger, and says so in the last word. */
	volatile char *memory = mmap((void *)0x200000000000, 16 << 20, PROT_READ | PROT_WRITE,
				     MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
	for (unsigned long at = 0; at < 16 << 20; at += 4096)
		memory[at] = 1;
	uint64_t state = 1, last = now();
	for (;;) {
		uint64_t pages = table[511];
		state = state * 6364136223846793005ul + 1442695040888963407ul;
		uint64_t begin = now();
		if (begin - last > 300000000ul && !table[1])
			table[1] = begin;
		memory[(state >> 24) % pages * 4096 + (state >> 52)];
		uint64_t end = now();
		/* It was stopped in between. */
		if (end - begin > 300000000ul && !table[1])
			begin = table[1] = end;
		if (table[1]) {
			table[2]++;
			if (end - begin > table[3])
				table[3] = end - begin;
			table[4 + 63 - __builtin_clzl((end - begin) | 1)]++;
		}
		last = end;
		table[0] = end;
	}
}

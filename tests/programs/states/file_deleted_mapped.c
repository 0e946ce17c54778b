/* Mappings of files that were deleted: one shared, one private.
 * expect: reconstructed deleted */
#include "state.h"
static char *shared, *private;
static void make(void)
{
	char content[8 * PAGE];
	fill(content, sizeof content, 1);
	for (int i = 0; i < 2; i++) {
		int fd = MUST(open("file", O_RDWR | O_CREAT, 0600));
		MUST(write(fd, content, sizeof content));
		char *p = map(sizeof content, PROT_READ | PROT_WRITE, i ? MAP_SHARED : MAP_PRIVATE, fd, 0);
		*(i ? &shared : &private) = p;
		close(fd);
		MUST(unlink("file"));
	}
	fill(shared, PAGE, 2);
	fill(private, PAGE, 3);
}
static void check(void)
{
	char content[8 * PAGE];
	CHECK(filled(shared, PAGE, 2) && filled(private, PAGE, 3));
	fill(content, sizeof content, 1);
	CHECK(!memcmp(shared + PAGE, content + PAGE, 7 * PAGE));
	CHECK(!memcmp(private + PAGE, content + PAGE, 7 * PAGE));
}

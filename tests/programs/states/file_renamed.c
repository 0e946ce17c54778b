/* Files that were renamed while they are open, and one whose directory was.
 * expect: exact */
#include "state.h"
static int a, b;
static void make(void)
{
	a = MUST(open("before", O_RDWR | O_CREAT, 0600));
	MUST(write(a, "first", 5));
	MUST(rename("before", "behind"));
	MUST(mkdir("directory", 0700));
	b = MUST(open("directory/file with a space\n", O_RDWR | O_CREAT, 0600));
	MUST(write(b, "second", 6));
	MUST(rename("directory", "moved"));
}
static void check(void)
{
	char got[8];
	CHECK(pread(a, got, 8, 0) == 5 && !memcmp(got, "first", 5));
	CHECK(pread(b, got, 8, 0) == 6 && !memcmp(got, "second", 6));
	struct stat x, y;
	CHECK(fstat(a, &x) == 0 && stat("behind", &y) == 0 && x.st_ino == y.st_ino);
	CHECK(fstat(b, &x) == 0 && stat("moved/file with a space\n", &y) == 0 && x.st_ino == y.st_ino);
}

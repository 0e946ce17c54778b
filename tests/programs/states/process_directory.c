/* A working directory that was deleted.
 * expect: reconstructed working directory
 * live: no: there is no path to a directory that was deleted */
#include "state.h"
#include <dirent.h>
static void make(void)
{
	MUST(mkdir("gone", 0700));
	MUST(chdir("gone"));
	MUST(rmdir("../gone"));
}
static void check(void)
{
	char here[200];
	CHECK(!getcwd(here, sizeof here) && errno == ENOENT);
	CHECK(open("new", O_CREAT | O_RDWR, 0600) == -1 && errno == ENOENT);
	long len = readlink("/proc/self/cwd", here, sizeof here - 1);
	CHECK(len > 0);
	here[len] = 0;
	CHECK(strstr(here, "/gone (deleted)"));
	struct stat st;
	CHECK(stat(".", &st) == 0 && S_ISDIR(st.st_mode) && st.st_nlink == 0);
}

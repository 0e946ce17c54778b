/* Arguments that the program wrote over, as ps shows them, and its environment.
 * expect: exact */
#include "state.h"
static void make(void)
{
	memset(main_argv[0], 0, strlen(main_argv[0]));
	strcpy(main_argv[0], "title");
	MUST(setenv("OF_THE_TEST", "a value", 1));
}
static void check(void)
{
	char got[300] = "";
	int fd = open("/proc/self/cmdline", O_RDONLY);
	CHECK(read(fd, got, sizeof got - 1) > 0);
	CHECK(!strcmp(got, "title"));
	CHECK(!strcmp(getenv("OF_THE_TEST"), "a value"));
	fd = open("/proc/self/environ", O_RDONLY);
	CHECK(read(fd, got, 1) >= 0);
	fd = open("/proc/self/auxv", O_RDONLY);
	CHECK(read(fd, got, 16) == 16);
}

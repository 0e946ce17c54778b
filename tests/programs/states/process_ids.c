/* Users, groups, and file-system IDs.
 * expect: exact */
#include "look.h"
#include <grp.h>
static void make(void)
{
	gid_t groups[] = { 7, 4000000000U, 12 };
	MUST(setgroups(3, groups));
	MUST(setresgid(101, 102, 103));
	MUST(setresuid(201, 202, 203));
}
static void check(void)
{
	uid_t r, e, s;
	gid_t groups[9];
	CHECK(getresuid(&r, &e, &s) == 0 && r == 201 && e == 202 && s == 203);
	CHECK(getresgid(&r, &e, &s) == 0 && r == 101 && e == 102 && s == 103);
	SAME(getgroups(9, groups), 3);
	CHECK(groups[0] == 7 && groups[1] == 12 && groups[2] == 4000000000U);
	CHECK(!strcmp(line_of("/proc/thread-self/status", "Uid"), "201\t202\t203\t202"));
	CHECK(!strncmp(line_of("/proc/thread-self/status", "CapPrm"), "0000000000000000", 16));
}

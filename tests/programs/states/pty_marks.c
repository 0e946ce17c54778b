/* A terminal in line mode in which not only newlines end lines, and not every newline does:
 * an end of file, a newline and a ^D that were taken as they are, a second end character.
 * expect: exact
 * live: no: what is buffered cannot be seen from outside */
#include "state.h"
#include <termios.h>
static int master, slave;
static void make(void)
{
	struct termios t;
	master = MUST(posix_openpt(O_RDWR | O_NOCTTY));
	MUST(grantpt(master));
	MUST(unlockpt(master));
	slave = MUST(open(ptsname(master), O_RDWR | O_NOCTTY));
	MUST(tcgetattr(slave, &t));
	t.c_lflag &= ~ECHO;
	t.c_cc[VEOL] = ';';
	MUST(tcsetattr(slave, TCSANOW, &t));
	/* ^D ends a line without a character; ^V takes the next as it is. */
	const char typed[] = "ab\4" "cd\26\nef\26\4\n" "gh;" "\4" "rest\26;";
	MUST(write(master, typed, sizeof typed - 1));
	rest(0.2);
}
static void gives(const char *words)
{
	char got[60];
	long len = read(slave, got, 60);
	CHECK(len == (long)strlen(words) && !memcmp(got, words, len));
}
static void check(void)
{
	char got[9];
	CHECK(fcntl(slave, F_SETFL, O_NONBLOCK) == 0);
	gives("ab");
	gives("cd\nef\4\n");
	gives("gh;");
	gives("");
	CHECK(read(slave, got, 9) == -1 && errno == EAGAIN);
	CHECK(write(master, "\n", 1) == 1);
	rest(0.2);
	gives("rest;\n");
}

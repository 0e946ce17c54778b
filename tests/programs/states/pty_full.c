/* A pseudo-terminal that is full in both directions: the queues behind the line disciplines too.
 * expect: exact
 * live: no: what is buffered cannot be seen from outside */
#include "state.h"
#include <termios.h>
static int ends[2];
static long wrote[2];
static char letter(long n) { return 'a' + (n * n / 7) % 23; }
static void make(void)
{
	struct termios t;
	ends[0] = MUST(posix_openpt(O_RDWR | O_NOCTTY | O_NONBLOCK));
	MUST(grantpt(ends[0]));
	MUST(unlockpt(ends[0]));
	ends[1] = MUST(open(ptsname(ends[0]), O_RDWR | O_NOCTTY | O_NONBLOCK));
	MUST(tcgetattr(ends[1], &t));
	t.c_lflag &= ~(ICANON | ECHO);
	MUST(tcsetattr(ends[1], TCSANOW, &t));
	for (int end = 0; end < 2; end++) {
		for (int quiet = 0; quiet < 3;) {
			char c = letter(wrote[end]);
			if (write(ends[end], &c, 1) == 1) {
				wrote[end]++;
				quiet = 0;
			} else {
				rest(0.1);
				quiet++;
			}
		}
		MUST(wrote[end] > 4500 ? 0 : -1);
	}
}
static void check(void)
{
	for (int end = 0; end < 2; end++) {
		long read_back = 0;
		for (int quiet = 0; quiet < 3;) {
			char got[100];
			long len = read(ends[!end], got, sizeof got);
			for (long i = 0; i < len; i++, read_back++)
				CHECK(got[i] == letter(read_back));
			if (len > 0) {
				quiet = 0;
			} else {
				rest(0.1);
				quiet++;
			}
		}
		SAME(read_back, wrote[end]);
	}
}

/* Threads in write(2) to a pseudo-terminal that nobody reads, in the middle: one whose output
 * is processed, and one whose is not.
 * expect: reconstructed stay mapped
 * live: no: a call that is stopped returns with what it has moved */
#include "stream.h"
#include <stdlib.h>
#include <termios.h>
#define TOTAL 150000L
static struct caller c, d;
static int master[2], slave[2];
static long call(void) { return write(slave[0], stream_out, TOTAL); }
static long call_too(void) { return write(slave[1], stream_out, TOTAL); }
static void make(void)
{
	stream_begin();
	for (int i = 0; i < 2; i++) {
		struct termios settings;
		master[i] = MUST(posix_openpt(O_RDWR | O_NOCTTY));
		MUST(grantpt(master[i]));
		MUST(unlockpt(master[i]));
		slave[i] = MUST(open(ptsname(master[i]), O_RDWR | O_NOCTTY));
		MUST(tcgetattr(slave[i], &settings));
		cfmakeraw(&settings);
		if (i == 0)
			settings.c_oflag = OPOST;
		MUST(tcsetattr(slave[i], TCSANOW, &settings));
	}
	begin(&c, call, SYS_write);
	begin(&d, call_too, SYS_write);
	settle();
}
static void check(void)
{
	still_in(&c);
	still_in(&d);
	stream_end(master[0], 0, TOTAL);
	back_with(&c, TOTAL, 0);
	stream_end(master[1], 0, TOTAL);
	back_with(&d, TOTAL, 0);
}

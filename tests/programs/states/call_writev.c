/* Threads in writev(2) to pipes: of three buffers, and of twenty, which the kernel keeps
 * elsewhere; a part of them was written.
 * expect: reconstructed stay mapped
 * live: no: a call that is stopped returns with what it has moved */
#include "stream.h"
static struct caller c, d;
static int few[2], many[2];
static struct iovec three[3], twenty[20];
static long call(void) { return writev(few[1], three, 3); }
static long call_too(void) { return writev(many[1], twenty, 20); }
static void make(void)
{
	stream_begin();
	MUST(pipe(few));
	MUST(pipe(many));
	stream_vector(three, 3, 200000);
	stream_vector(twenty, 20, 300000);
	begin(&c, call, SYS_writev);
	begin(&d, call_too, SYS_writev);
	settle();
}
static void check(void)
{
	still_in(&c);
	still_in(&d);
	stream_end(few[0], 0, 200000);
	back_with(&c, 200000, 0);
	stream_end(many[0], 0, 300000);
	back_with(&d, 300000, 0);
}

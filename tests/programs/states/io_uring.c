/* An io_uring.
 * expect: refused io_uring
 * live: no: the test takes none */
#include "state.h"
#include <linux/io_uring.h>
static void make(void)
{
	struct io_uring_params params = { 0 };
	long fd = syscall(SYS_io_uring_setup, 8, &params);
	if (fd < 0)
		ABSENT("no io_uring");
}
static void check(void) {}

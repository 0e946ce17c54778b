/* A thread in io_getevents(2) of native asynchronous I/O.
 * expect: exact
 * live: no: to be stopped for a look ends the call */
#include "call.h"
#include <linux/aio_abi.h>
static struct caller c;
static aio_context_t context;
static struct io_event event;
static long call(void) { return syscall(SYS_io_getevents, context, 1, 1, &event, NULL); }
static void make(void)
{
	MUST(syscall(SYS_io_setup, 64, &context));
	begin(&c, call, SYS_io_getevents);
}
static void check(void)
{
	static char text[] = "0123456789";
	int fd = open("file", O_RDWR | O_CREAT, 0600);
	struct iocb request = { .aio_fildes = fd, .aio_lio_opcode = IOCB_CMD_PWRITE,
		.aio_buf = (unsigned long)text, .aio_nbytes = 10, .aio_data = 77 };
	struct iocb *all[] = { &request };
	still_in(&c);
	SAME(syscall(SYS_io_submit, context, 1, all), 1);
	back_with(&c, 1, 0);
	SAME(event.data, 77);
	SAME(event.res, 10);
}

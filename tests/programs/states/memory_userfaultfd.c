/* A userfaultfd with an area that it looks after.
 * expect: refused userfaultfd
 * live: no: a living kernel's faults would have to be answered */
#include "state.h"
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
static void make(void)
{
	long fd = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	if (fd < 0)
		ABSENT("no userfaultfd");
	struct uffdio_api api = { .api = UFFD_API };
	MUST(ioctl(fd, UFFDIO_API, &api));
	char *p = map(4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct uffdio_register area = { .range = { (unsigned long)p, 4 * PAGE },
					.mode = UFFDIO_REGISTER_MODE_MISSING };
	MUST(ioctl(fd, UFFDIO_REGISTER, &area));
}
static void check(void) {}

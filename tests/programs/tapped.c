/* Holds a tap interface and locked memory, and looks at every tick whether
 * both are as they were. Output as living.c's. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	char path[256];
	(void)argc;
	close_range(3, ~0u, 0);
	snprintf(path, sizeof path, "%s/log", argv[1]);
	int log = open(path, O_WRONLY | O_CREAT | O_APPEND, 0600);
	int tap = open("/dev/net/tun", O_RDWR | O_NONBLOCK);
	struct ifreq wanted = { .ifr_name = "vmrtest0" };
	wanted.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR;
	int header = 12;
	if (log < 0 || ioctl(tap, TUNSETIFF, &wanted) || ioctl(tap, TUNSETVNETHDRSZ, &header) ||
	    ioctl(tap, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4))
		return 1;
	char *locked = mmap(0, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	locked[4096] = 3;
	if (mlock2(locked, 1 << 20, MLOCK_ONFAULT))
		return 1;
	for (unsigned long tick = 1;; tick++) {
		struct ifreq now = { 0 };
		int size = 0;
		char line[200];
		struct timespec t, nap = { 0, 20000000 };
		nanosleep(&nap, 0);
		clock_gettime(CLOCK_MONOTONIC, &t);
		int fine = ioctl(tap, TUNGETIFF, &now) == 0 && strcmp(now.ifr_name, "vmrtest0") == 0 &&
			   (now.ifr_flags & (IFF_TAP | IFF_NO_PI | IFF_VNET_HDR)) == (IFF_TAP | IFF_NO_PI | IFF_VNET_HDR) &&
			   ioctl(tap, TUNGETVNETHDRSZ, &size) == 0 && size == 12 && locked[4096] == 3 &&
			   fcntl(tap, F_GETFL) == (O_RDWR | O_NONBLOCK | 0100000);
		int n = snprintf(line, sizeof line, "%s tick %lu pid %d mono %lu spins %lu\n", fine ? "" : "BAD", tick,
				 (int)getpid(), t.tv_sec * 1000000000ul + t.tv_nsec, tick);
		if (write(log, line, n) != n)
			return 1;
	}
}

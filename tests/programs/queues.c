/* Holds two queues of one tap, of which the second is out of service, as QEMU
 * has it until its guest asks for more. Output as living.c's. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	char path[256];
	(void)argc;
	close_range(3, ~0u, 0);
	snprintf(path, sizeof path, "%s/log", argv[1]);
	int log = open(path, O_WRONLY | O_CREAT | O_APPEND, 0600);
	int queues[2];
	for (int i = 0; i < 2; i++) {
		struct ifreq wanted = { .ifr_name = "vmrtest0" };
		wanted.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | IFF_MULTI_QUEUE;
		int header = 12;
		queues[i] = open("/dev/net/tun", O_RDWR | O_NONBLOCK);
		if (ioctl(queues[i], TUNSETIFF, &wanted) || ioctl(queues[i], TUNSETVNETHDRSZ, &header))
			return 1;
	}
	struct ifreq off = { .ifr_flags = IFF_DETACH_QUEUE };
	if (log < 0 || ioctl(queues[1], TUNSETQUEUE, &off))
		return 1;
	for (unsigned long tick = 1;; tick++) {
		struct ifreq now = { 0 };
		int size = 0;
		char line[200];
		struct timespec t, nap = { 0, 20000000 };
		nanosleep(&nap, 0);
		clock_gettime(CLOCK_MONOTONIC, &t);
		int fine = ioctl(queues[0], TUNGETIFF, &now) == 0 && strcmp(now.ifr_name, "vmrtest0") == 0 &&
			   now.ifr_flags & IFF_MULTI_QUEUE && ioctl(queues[0], TUNGETVNETHDRSZ, &size) == 0 &&
			   size == 12 && !(now.ifr_flags & IFF_DETACH_QUEUE) &&
			   ioctl(queues[1], TUNGETIFF, &now) == 0 && strcmp(now.ifr_name, "vmrtest0") == 0 &&
			   now.ifr_flags & IFF_DETACH_QUEUE;
		int n = snprintf(line, sizeof line, "%s tick %lu pid %d mono %lu spins %lu\n", fine ? "" : "BAD", tick,
				 (int)getpid(), t.tv_sec * 1000000000ul + t.tv_nsec, tick);
		if (write(log, line, n) != n)
			return 1;
	}
}

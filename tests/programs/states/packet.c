/* A packet socket.
 * expect: lost packet
 * live: no: the test takes none */
#include "state.h"
#include <arpa/inet.h>
#include <linux/if_packet.h>
static int fd;
static void make(void)
{
	fd = socket(AF_PACKET, SOCK_DGRAM, htons(3));
	if (fd < 0)
		ABSENT("no packet sockets");
}
static void check(void)
{
	char got[2000];
	CHECK(recv(fd, got, sizeof got, MSG_DONTWAIT) == -1 && errno == EAGAIN);
}

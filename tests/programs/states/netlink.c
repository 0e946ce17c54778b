/* A netlink socket, bound to a group.
 * expect: lost netlink
 * live: no: the test takes none */
#include "state.h"
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
static int fd;
static void make(void)
{
	struct sockaddr_nl at = { .nl_family = AF_NETLINK, .nl_groups = RTMGRP_LINK };
	fd = MUST(socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE));
	MUST(bind(fd, (void *)&at, sizeof at));
}
static void check(void)
{
	char got[100];
	CHECK(recv(fd, got, sizeof got, MSG_DONTWAIT) == -1 && errno == EAGAIN);
}

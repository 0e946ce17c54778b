/* UDP: bound and connected sockets over loopback, IPv4.
 * expect: exact
 * live: no: procfs does not say all of it */
#include "state.h"
#include <arpa/inet.h>
static int server, client;
static struct sockaddr_in at = { .sin_family = AF_INET };
static void make(void)
{
	at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	at.sin_port = htons(7701);
	server = MUST(socket(AF_INET, SOCK_DGRAM, 0));
	MUST(bind(server, (void *)&at, sizeof at));
	client = MUST(socket(AF_INET, SOCK_DGRAM, 0));
	MUST(connect(client, (void *)&at, sizeof at));
}
static void check(void)
{
	char got[10];
	struct sockaddr_in from, own;
	socklen_t len = sizeof from;
	CHECK(send(client, "hello", 5, 0) == 5);
	CHECK(recvfrom(server, got, 10, 0, (void *)&from, &len) == 5 && !memcmp(got, "hello", 5));
	len = sizeof own;
	CHECK(getsockname(client, (void *)&own, &len) == 0 && own.sin_port == from.sin_port);
	CHECK(sendto(server, "back", 4, 0, (void *)&from, sizeof from) == 4);
	CHECK(recv(client, got, 10, 0) == 4);
}

/* UDP datagrams that nobody has read, over IPv4 and IPv6, with who had sent them.
 * expect: exact
 * live: no: procfs does not say all of it
 */
#include "state.h"
#include <arpa/inet.h>
static int server, server6, client;
static struct sockaddr_in at = { .sin_family = AF_INET }, sender;
static struct sockaddr_in6 at6 = { .sin6_family = AF_INET6 };
static void make(void)
{
	socklen_t len = sizeof sender;
	static char large[30000];
	at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	at.sin_port = htons(7702);
	server = MUST(socket(AF_INET, SOCK_DGRAM, 0));
	MUST(bind(server, (void *)&at, sizeof at));
	client = MUST(socket(AF_INET, SOCK_DGRAM, 0));
	MUST(connect(client, (void *)&at, sizeof at));
	MUST(getsockname(client, (void *)&sender, &len));
	memset(large, 'x', sizeof large);
	MUST(send(client, "hello", 5, 0));
	MUST(send(client, "", 0, 0));
	MUST(send(client, large, sizeof large, 0));
	close(client);
	at6.sin6_addr = in6addr_loopback;
	at6.sin6_port = htons(7702);
	server6 = socket(AF_INET6, SOCK_DGRAM, 0);
	if (server6 < 0 || bind(server6, (void *)&at6, sizeof at6))
		ABSENT("no IPv6");
	client = MUST(socket(AF_INET6, SOCK_DGRAM, 0));
	MUST(sendto(client, "six", 3, 0, (void *)&at6, sizeof at6));
}
static void check(void)
{
	static char got[40000];
	struct sockaddr_in from;
	struct sockaddr_in6 from6, own6;
	socklen_t len = sizeof from;
	SAME(recvfrom(server, got, sizeof got, MSG_DONTWAIT, (void *)&from, &len), 5);
	CHECK(!memcmp(got, "hello", 5) && from.sin_port == sender.sin_port);
	CHECK(from.sin_addr.s_addr == sender.sin_addr.s_addr);
	SAME(recv(server, got, sizeof got, MSG_DONTWAIT), 0);
	SAME(recv(server, got, sizeof got, MSG_DONTWAIT), 30000);
	for (int i = 0; i < 30000; i++)
		SAME(got[i], 'x');
	CHECK(recv(server, got, 10, MSG_DONTWAIT) == -1 && errno == EAGAIN);
	len = sizeof from6;
	SAME(recvfrom(server6, got, sizeof got, MSG_DONTWAIT, (void *)&from6, &len), 3);
	len = sizeof own6;
	CHECK(getsockname(client, (void *)&own6, &len) == 0 && own6.sin6_port == from6.sin6_port);
	CHECK(sendto(server6, "back", 4, 0, (void *)&from6, sizeof from6) == 4);
	SAME(recv(client, got, 10, 0), 4);
}

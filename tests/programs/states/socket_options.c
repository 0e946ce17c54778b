/* Options of sockets of four kinds: timeouts, linger, marks, priorities, types of service,
 * keep-alive, multicast, what is told with a datagram, a filter.
 * expect: exact
 * live: no: procfs does not say */
#include "state.h"
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <netinet/udp.h>
#include <linux/filter.h>
#include <linux/in6.h>
#define IPV6_MINHOPCOUNT_ 73
static const struct option { int level, name, value; } tcp[] = {
	{ IPPROTO_IP, IP_TOS, 0x10 }, { IPPROTO_IP, IP_TTL, 33 }, { IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DONT },
	{ IPPROTO_IP, IP_FREEBIND, 1 }, { IPPROTO_IP, IP_MINTTL, 3 }, { IPPROTO_IP, IP_RECVERR, 1 },
	{ SOL_SOCKET, SO_PRIORITY, 5 }, { SOL_SOCKET, SO_KEEPALIVE, 1 }, { SOL_SOCKET, SO_MARK, 77 },
	{ SOL_SOCKET, SO_REUSEADDR, 1 }, { SOL_SOCKET, SO_RCVLOWAT, 9 }, { SOL_SOCKET, SO_OOBINLINE, 1 },
	{ SOL_SOCKET, SO_ZEROCOPY, 1 }, { SOL_SOCKET, SO_BUSY_POLL, 20 }, { SOL_SOCKET, SO_DONTROUTE, 1 },
	{ IPPROTO_TCP, TCP_NODELAY, 1 }, { IPPROTO_TCP, TCP_KEEPIDLE, 123 }, { IPPROTO_TCP, TCP_KEEPINTVL, 45 },
	{ IPPROTO_TCP, TCP_KEEPCNT, 6 }, { IPPROTO_TCP, TCP_SYNCNT, 4 }, { IPPROTO_TCP, TCP_LINGER2, 31 },
	{ IPPROTO_TCP, TCP_USER_TIMEOUT, 12345 }, { IPPROTO_TCP, TCP_MAXSEG, 1000 },
	{ IPPROTO_TCP, TCP_NOTSENT_LOWAT, 7777 }, { IPPROTO_TCP, TCP_DEFER_ACCEPT, 7 },
}, udp[] = {
	{ SOL_SOCKET, SO_BROADCAST, 1 }, { SOL_SOCKET, SO_TIMESTAMPNS, 1 }, { SOL_SOCKET, SO_RXQ_OVFL, 1 },
	{ SOL_SOCKET, SO_NO_CHECK, 1 }, { SOL_SOCKET, SO_RCVBUF, 50000 }, { SOL_SOCKET, SO_SNDBUF, 60000 },
	{ IPPROTO_IP, IP_PKTINFO, 1 }, { IPPROTO_IP, IP_RECVTTL, 1 }, { IPPROTO_IP, IP_RECVTOS, 1 },
	{ IPPROTO_IP, IP_MULTICAST_TTL, 9 }, { IPPROTO_IP, IP_MULTICAST_LOOP, 0 }, { IPPROTO_IP, IP_MULTICAST_ALL, 0 },
	{ IPPROTO_UDP, UDP_GRO, 1 }, { IPPROTO_UDP, UDP_SEGMENT, 1200 },
}, six[] = {
	{ IPPROTO_IPV6, IPV6_V6ONLY, 1 }, { IPPROTO_IPV6, IPV6_TCLASS, 0x20 }, { IPPROTO_IPV6, IPV6_UNICAST_HOPS, 44 },
	{ IPPROTO_IPV6, IPV6_MULTICAST_HOPS, 5 }, { IPPROTO_IPV6, IPV6_MULTICAST_LOOP, 0 },
	{ IPPROTO_IPV6, IPV6_RECVPKTINFO, 1 }, { IPPROTO_IPV6, IPV6_RECVHOPLIMIT, 1 },
	{ IPPROTO_IPV6, IPV6_RECVTCLASS, 1 }, { IPPROTO_IPV6, IPV6_DONTFRAG, 1 },
	{ IPPROTO_IPV6, IPV6_MTU_DISCOVER, IPV6_PMTUDISC_DO }, { IPPROTO_IPV6, IPV6_RECVERR, 1 },
	{ IPPROTO_IPV6, IPV6_MINHOPCOUNT_, 2 },
}, local[] = {
	{ SOL_SOCKET, SO_PRIORITY, 3 }, { SOL_SOCKET, SO_MARK, 5 }, { SOL_SOCKET, SO_PASSCRED, 1 },
	{ SOL_SOCKET, SO_TIMESTAMP, 1 },
};
#define KIND(family, type, options) { family, type, options, sizeof options / sizeof *options, -1, { 0 } }
static struct kind {
	int family, type;
	const struct option *options;
	size_t count;
	int fd;
	int set[32];
} kinds[] = {
	KIND(AF_INET, SOCK_STREAM, tcp), KIND(AF_INET, SOCK_DGRAM, udp),
	KIND(AF_INET6, SOCK_DGRAM, six), KIND(AF_UNIX, SOCK_DGRAM, local),
};
static struct sock_filter program[] = { BPF_STMT(BPF_RET | BPF_K, 0xffff) };
static int value_of(int fd, const struct option *o)
{
	int value = -1;
	socklen_t len = sizeof value;
	CHECK(getsockopt(fd, o->level, o->name, &value, &len) == 0);
	return value;
}
static void make(void)
{
	struct timeval span = { 12, 500000 };
	struct linger linger = { 1, 17 };
	struct sock_fprog filter = { 1, program };
	for (struct kind *k = kinds; k < kinds + 4; k++) {
		k->fd = socket(k->family, k->type, 0);
		if (k->fd < 0)
			ABSENT("no such sockets");
		for (size_t i = 0; i < k->count; i++) {
			const struct option *o = &k->options[i];
			if (setsockopt(k->fd, o->level, o->name, &o->value, 4)) {
				/* A kernel may not have all of them. */
				MUST(errno == ENOPROTOOPT || errno == EOPNOTSUPP ? 0 : -1);
				k->set[i] = -1;
				continue;
			}
			k->set[i] = value_of(k->fd, o);
		}
		MUST(setsockopt(k->fd, SOL_SOCKET, SO_RCVTIMEO, &span, sizeof span));
	}
	MUST(setsockopt(kinds[0].fd, SOL_SOCKET, SO_LINGER, &linger, sizeof linger));
	MUST(setsockopt(kinds[0].fd, IPPROTO_TCP, TCP_CONGESTION, "reno", 4));
	MUST(setsockopt(kinds[1].fd, SOL_SOCKET, SO_ATTACH_FILTER, &filter, sizeof filter));
}
static void check(void)
{
	struct timeval span = { 0 };
	struct linger linger = { 0 };
	char name[16] = "";
	socklen_t len;
	for (struct kind *k = kinds; k < kinds + 4; k++) {
		for (size_t i = 0; i < k->count; i++) {
			const struct option *o = &k->options[i];
			int now = k->set[i] < 0 ? -1 : value_of(k->fd, o);
			if (now != k->set[i])
				FAIL("socket %d, level %d, option %d: %d and not %d", (int)(k - kinds),
				     o->level, o->name, now, k->set[i]);
		}
		len = sizeof span;
		CHECK(getsockopt(k->fd, SOL_SOCKET, SO_RCVTIMEO, &span, &len) == 0);
		CHECK(span.tv_sec == 12 && span.tv_usec == 500000);
	}
	len = sizeof linger;
	CHECK(getsockopt(kinds[0].fd, SOL_SOCKET, SO_LINGER, &linger, &len) == 0);
	CHECK(linger.l_onoff == 1 && linger.l_linger == 17);
	len = sizeof name;
	CHECK(getsockopt(kinds[0].fd, IPPROTO_TCP, TCP_CONGESTION, name, &len) == 0 && !strcmp(name, "reno"));
	struct sock_filter got[4];
	len = 4;
	CHECK(getsockopt(kinds[1].fd, SOL_SOCKET, SO_GET_FILTER, got, &len) == 0);
	CHECK(len == 1 && got[0].code == program[0].code && got[0].k == program[0].k);
}

/* A TCP listener with connections that nobody has accepted: one of the program's own,
 * and one whose other end was closed.
 * expect: lost waiting to be accepted
 * live: no: nobody can look into a backlog
 */
#include "tcp.h"
static int listener, client;
static void make(void)
{
	listener = listen_at(AF_INET, 7717, 5);
	client = connect_to(AF_INET, 7717);
	MUST(write(client, "first", 5));
	int other = connect_to(AF_INET, 7717);
	MUST(write(other, "second", 6));
	close(other);
	rest(0.1);
}
static void check(void)
{
	char got[16];
	MUST(fcntl(listener, F_SETFL, O_NONBLOCK));
	int one = accept(listener, NULL, NULL);
	CHECK(one >= 0);
	int two = accept(listener, NULL, NULL);
	CHECK(two >= 0);
	CHECK(accept(listener, NULL, NULL) == -1 && errno == EAGAIN);
	CHECK(read_all(one, got, 5) && !memcmp(got, "first", 5));
	CHECK(talks(client, one) && talks(one, client));
	CHECK(read_all(two, got, 6) && !memcmp(got, "second", 6) && at_end(two));
}

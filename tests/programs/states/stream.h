/* Threads with a part of their bytes moved: a stream of which each byte is known,
 * so that one that is there twice, or is not, is seen. */
#pragma once
#include "call.h"
#include "tcp.h"
#include <sys/uio.h>

#define MUCH (3L << 20)
static unsigned char stream_out[MUCH], stream_in[MUCH + 64];

static unsigned char byte_at(long i) { return i * 7 + i / 251 + i / 65521; }

UNUSED static void stream_begin(void)
{
	for (long i = 0; i < MUCH; i++)
		stream_out[i] = byte_at(i);
}

/* Of whom a failure tells, and the other end. */
UNUSED static struct caller *stream_from;
UNUSED static int stream_source = -1;

UNUSED static void stream_stalls(long have, long wanted)
{
	struct tcp_info i = { 0 };
	socklen_t len = sizeof i;
	getsockopt(stream_source, IPPROTO_TCP, TCP_INFO, &i, &len);
	FAIL("%ld of %ld bytes came; the call: over %d, %ld (errno %d); state %u, unacked %u, rto %u, probes %u, backoff %u",
	     have, wanted, stream_from ? stream_from->done : -1, stream_from ? stream_from->result : 0,
	     stream_from ? stream_from->error : 0, i.tcpi_state, i.tcpi_unacked, i.tcpi_rto, i.tcpi_probes,
	     i.tcpi_backoff);
}

/* So many bytes are there and no more, and they are those from `from` on; -1: of any number. */
UNUSED static long stream_end(int fd, long from, long wanted)
{
	long have = 0;
	while (have < (wanted < 0 ? MUCH : wanted)) {
		struct pollfd one = { fd, POLLIN, 0 };
		if (poll(&one, 1, wanted < 0 ? 700 : 15000) != 1)
			break;
		long got = read(fd, stream_in, wanted < 0 ? MUCH : wanted - have);
		if (got <= 0)
			break;
		for (long i = 0; i < got; i++)
			if (stream_in[i] != byte_at(from + have + i))
				FAIL("byte %ld behind %ld is another", have + i, from);
		have += got;
	}
	if (wanted >= 0) {
		struct pollfd one = { fd, POLLIN, 0 };
		if (have != wanted)
			stream_stalls(have, wanted);
		if (poll(&one, 1, 300) == 1 && read(fd, stream_in, 1) == 1)
			FAIL("there is more than %ld bytes", wanted);
	}
	return have;
}

/* Buffers of unequal sizes over the stream, one of them empty. */
UNUSED static long stream_vector(struct iovec *vector, int count, long total)
{
	long at = 0;
	for (int i = 0; i < count; i++) {
		long len = i == count - 1 ? total - at : i == 1 ? 0 : total / count / 2 + 101 * i;
		vector[i] = (struct iovec){ stream_out + at, len };
		at += len;
	}
	return at;
}

/* Lets it sleep for a while, until nothing moves any more. */
UNUSED static void settle(void) { rest(0.3); }

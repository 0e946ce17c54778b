/* eventfds with their counts, one of them a semaphore.
 * expect: exact */
#include "state.h"
#include <sys/eventfd.h>
static int plain, semaphore, large;
static void make(void)
{
	plain = MUST(eventfd(7, EFD_NONBLOCK));
	semaphore = MUST(eventfd(3, EFD_SEMAPHORE | EFD_NONBLOCK));
	large = MUST(eventfd(0, EFD_NONBLOCK));
	unsigned long count = 1UL << 40;
	MUST(write(large, &count, 8));
}
static void check(void)
{
	unsigned long got;
	CHECK(read(plain, &got, 8) == 8 && got == 7);
	CHECK(read(plain, &got, 8) == -1 && errno == EAGAIN);
	for (int i = 0; i < 3; i++)
		CHECK(read(semaphore, &got, 8) == 8 && got == 1);
	CHECK(read(semaphore, &got, 8) == -1 && errno == EAGAIN);
	CHECK(read(large, &got, 8) == 8 && got == 1UL << 40);
}

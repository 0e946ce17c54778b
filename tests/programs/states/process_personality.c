/* A personality: without random addresses, mmap at the bottom.
 * expect: exact
 * live: no: the test takes none */
#include "state.h"
#include <sys/personality.h>
static void make(void) { MUST(personality(ADDR_NO_RANDOMIZE | ADDR_COMPAT_LAYOUT)); }
static void check(void) { SAME(personality(0xffffffff), ADDR_NO_RANDOMIZE | ADDR_COMPAT_LAYOUT); }

/* The priority of a thread's input and output.
 * expect: exact
 * live: no: not taken by the test */
#include "state.h"
static void make(void) { MUST(syscall(SYS_ioprio_set, 1, 0, 2 << 13 | 3)); }
static void check(void) { SAME(syscall(SYS_ioprio_get, 1, 0), 2 << 13 | 3); }

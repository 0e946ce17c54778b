/* Code that the program wrote itself, as compilers at run time do.
 * expect: exact */
#include "state.h"
static char *p;
static void make(void)
{
	static const unsigned char code[] = { 0x8d, 0x47, 0x2a, 0xc3 }; /* lea eax,[rdi+42]; ret */
	p = map(2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	memcpy(p, code, sizeof code);
	MUST(mprotect(p, PAGE, PROT_READ | PROT_EXEC));
	memcpy(p + PAGE, code, sizeof code);
	MUST(mprotect(p + PAGE, PAGE, PROT_READ | PROT_WRITE | PROT_EXEC));
}
static void check(void)
{
	SAME(((int (*)(int))(void *)p)(1), 43);
	SAME(((int (*)(int))(void *)(p + PAGE))(2), 44);
	p[PAGE + 2] = 43;
	SAME(((int (*)(int))(void *)(p + PAGE))(2), 45);
}

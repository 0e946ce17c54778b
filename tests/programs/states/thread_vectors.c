/* Vector registers of a thread in a system call: XMM, the upper halves of YMM, MXCSR.
 * expect: exact */
#include "call.h"
#include <immintrin.h>
#include <linux/futex.h>
static struct caller c;
static int word = 1, wide;
static unsigned char in[16][32] __attribute__((aligned(32))), out[16][32] __attribute__((aligned(32)));
static unsigned csr_in = 0x1f80 | 0x6000, csr_out, csr_usual = 0x1f80;
#define EACH(x) x(0) x(1) x(2) x(3) x(4) x(5) x(6) x(7) x(8) x(9) x(10) x(11) x(12) x(13) x(14) x(15)
#define LOAD(n) "vmovdqa " #n "*32(%%rax), %%ymm" #n "\n"
#define STORE(n) "vmovdqa %%ymm" #n ", " #n "*32(%%rax)\n"
#define LOAD_X(n) "movdqa " #n "*32(%%rax), %%xmm" #n "\n"
#define STORE_X(n) "movdqa %%xmm" #n ", " #n "*32(%%rax)\n"
#define WAIT "ldmxcsr %2; mov %4, %%eax; lea %1, %%rdi; mov $128, %%esi; mov $1, %%edx\n" \
	     "xor %%r10d, %%r10d; syscall; mov %%rax, %%rbx; stmxcsr %3; ldmxcsr %5; lea %6, %%rax\n"
#define OPERANDS : "=&b"(result), "+m"(word), "+m"(csr_in), "=m"(csr_out) \
	: "i"(SYS_futex), "m"(csr_usual), "m"(out), "m"(in) \
	: "rax", "rcx", "rdx", "rsi", "rdi", "r10", "r11", "memory"
__attribute__((target("avx"))) static long call_wide(void)
{
	long result;
	asm volatile("lea %7, %%rax\n" EACH(LOAD) WAIT EACH(STORE) "vzeroupper" OPERANDS);
	return result;
}
static long call_narrow(void)
{
	long result;
	asm volatile("lea %7, %%rax\n" EACH(LOAD_X) WAIT EACH(STORE_X) "nop" OPERANDS);
	return result;
}
static void make(void)
{
	wide = __builtin_cpu_supports("avx");
	fill(in, sizeof in, 7);
	begin(&c, wide ? call_wide : call_narrow, SYS_futex);
}
static void check(void)
{
	still_in(&c);
	word = 2;
	syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
	back_with(&c, 0, 0);
	for (int i = 0; i < 16; i++)
		CHECK(!memcmp(in[i], out[i], wide ? 32 : 16));
	SAME(csr_out, csr_in);
}

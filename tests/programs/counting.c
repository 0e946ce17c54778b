/* Counts in vector registers and in a general one at once, for ever, and says
 * after each block whether they still agree:
 *
 *     C n=12 ok
 *     C n=13 stale
 *
 * A program that is brought back with vector registers older than its general
 * ones says `stale` once. Built with -O2 -static. */
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define ROUNDS (1u << 24)

static int agree(const uint64_t *lanes, int count, uint64_t end)
{
	for (int i = 0; i < count; i++)
		if (lanes[i] != end)
			return 0;
	return 1;
}

static int count_sse(uint64_t from)
{
	uint64_t start[2] = { from, from }, one[2] = { 1, 1 }, out[4];
	uint64_t count = from, left = ROUNDS;

	asm volatile("movdqu (%[start]), %%xmm0\n\tmovdqa %%xmm0, %%xmm9\n\t"
		     "movdqu (%[one]), %%xmm1\n"
		     "1:\tpaddq %%xmm1, %%xmm0\n\tpaddq %%xmm1, %%xmm9\n\t"
		     "add $1, %[count]\n\tsub $1, %[left]\n\tjnz 1b\n\t"
		     "movdqu %%xmm0, (%[out])\n\tmovdqu %%xmm9, 16(%[out])"
		     : [count] "+r"(count), [left] "+r"(left)
		     : [start] "r"(start), [one] "r"(one), [out] "r"(out)
		     : "xmm0", "xmm1", "xmm9", "memory", "cc");
	return agree(out, 4, count);
}

__attribute__((target("avx2"))) static int count_avx(uint64_t from)
{
	uint64_t start[4] = { from, from, from, from }, one[4] = { 1, 1, 1, 1 }, out[8];
	uint64_t count = from, left = ROUNDS;

	asm volatile("vmovdqu (%[start]), %%ymm0\n\tvmovdqa %%ymm0, %%ymm9\n\t"
		     "vmovdqu (%[one]), %%ymm1\n"
		     "1:\tvpaddq %%ymm1, %%ymm0, %%ymm0\n\tvpaddq %%ymm1, %%ymm9, %%ymm9\n\t"
		     "add $1, %[count]\n\tsub $1, %[left]\n\tjnz 1b\n\t"
		     "vmovdqu %%ymm0, (%[out])\n\tvmovdqu %%ymm9, 32(%[out])\n\tvzeroupper"
		     : [count] "+r"(count), [left] "+r"(left)
		     : [start] "r"(start), [one] "r"(one), [out] "r"(out)
		     : "xmm0", "xmm1", "xmm9", "memory", "cc");
	return agree(out, 8, count);
}

int main(void)
{
	int avx = __builtin_cpu_supports("avx2");
	uint64_t from = 1;

	for (unsigned long n = 1;; n++) {
		int good = avx ? count_avx(from) : count_sse(from);
		char line[64];
		int len = snprintf(line, sizeof(line), "C n=%lu %s\n", n, good ? "ok" : "stale");

		if (write(1, line, len) != len)
			return 1;
		from += ROUNDS;
	}
}

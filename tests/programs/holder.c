/*
 * Holds memory full of noise, and tells its sum to whoever asks: the file
 * DIR/ask appears, and DIR/sum is written. For benches/restore.rs.
 *
 *     holder DIR MIB huge|small
 *     holder - MIB huge|small        touches so much, and ends
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

static uint64_t *memory;
static size_t words;

static uint64_t sum(void)
{
    uint64_t all = 0;
    for (size_t i = 0; i < words; i++)
        all = all * 31 + memory[i];
    return all;
}

int main(int argc, char **argv)
{
    if (argc != 4)
        return 2;
    /* What cargo left open is not ours. */
    close_range(3, ~0U, 0);
    size_t bytes = strtoul(argv[2], NULL, 10) << 20;
    /* At a huge page's border, whichever pages it is made of. */
    char *area = mmap(NULL, bytes + (2 << 20), PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (area == MAP_FAILED)
        return 1;
    memory = (uint64_t *)(((uintptr_t)area + (2 << 20) - 1) & ~(uintptr_t)((2 << 20) - 1));
    words = bytes / sizeof *memory;
    madvise(memory, bytes, strcmp(argv[3], "huge") == 0 ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
    if (strcmp(argv[1], "-") == 0) {
        memset(memory, 1, bytes);
        return 0;
    }
    uint64_t noise = 88172645463325252ull;
    for (size_t i = 0; i < words; i++) {
        noise ^= noise << 13;
        noise ^= noise >> 7;
        noise ^= noise << 17;
        memory[i] = noise;
    }
    char ask[4096], part[4096], told[4096];
    snprintf(ask, sizeof ask, "%s/ask", argv[1]);
    snprintf(part, sizeof part, "%s/part", argv[1]);
    snprintf(told, sizeof told, "%s/sum", argv[1]);
    for (;;) {
        if (access(ask, F_OK) == 0) {
            unlink(ask);
            FILE *to = fopen(part, "w");
            if (!to)
                return 1;
            fprintf(to, "%016lx\n", sum());
            fclose(to);
            rename(part, told);
        }
        nanosleep(&(struct timespec){.tv_nsec = 10 * 1000 * 1000}, NULL);
    }
}

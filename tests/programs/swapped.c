/* Memory of known content that is pushed out to swap. SIGUSR1: verifies every page and says so.
 *
 * usage: swapped SEED PAGES
 *        swapped on AREA PRIORITY: swapon, for a shell whose own knows no priorities
 *        swapped out PID: pushes the large areas of another process's memory out
 * Each page's content is a function of the seed, its number and its kind: noise, text, one word over
 * and over, mostly zeros with islands, all zeros, noise that hardly compresses. Private memory first,
 * then shared. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/swap.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define PAGE 4096
#ifndef MADV_PAGEOUT
#define MADV_PAGEOUT 21
#endif

static uint64_t seed;
static size_t pages;
static unsigned char *memory[2];
static volatile sig_atomic_t asked;

static uint64_t next(uint64_t *state) {
    uint64_t z = (*state += 0x9e3779b97f4a7c15);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
}

static void make(unsigned char *page, int which, size_t index) {
    uint64_t state = seed * 1000003 + index * 2 + which;
    uint64_t *words = (uint64_t *)page;
    memset(page, 0, PAGE);
    switch (index % 6) {
    case 0: /* nothing compresses this */
        for (int i = 0; i < PAGE / 8; i++) words[i] = next(&state);
        break;
    case 1: { /* text */
        size_t at = 0;
        while (at < PAGE - 40)
            at += sprintf((char *)page + at, "page %zu says %llx\n", index,
                          (unsigned long long)(next(&state) & 0xff));
        break;
    }
    case 2: { /* one word */
        uint64_t word = next(&state);
        for (int i = 0; i < PAGE / 8; i++) words[i] = word;
        break;
    }
    case 3: /* islands in zeros: lzo-rle has an instruction for that */
        for (int i = 0; i < PAGE / 8; i += 1 + next(&state) % 60) words[i] = next(&state);
        break;
    case 4: /* zeros, and one bit of it in every second one */
        if (index % 4) page[index % PAGE] = 1;
        break;
    case 5: { /* compressed it is about as long as a page: a little less, a little more, just so */
        size_t again = index / 6 % 50;
        for (int i = 0; i < PAGE / 8; i++) words[i] = next(&state);
        memcpy(page + PAGE / 2, page, again);
        break;
    }
    }
}

static size_t away(void) {
    size_t count = 0;
    int map = open("/proc/self/pagemap", O_RDONLY);
    for (int which = 0; which < 2; which++)
        for (size_t i = 0; i < pages; i++) {
            uint64_t entry = 0;
            uintptr_t at = (uintptr_t)memory[which] / PAGE + i;
            if (pread(map, &entry, 8, at * 8) == 8 && !(entry >> 63)) count++;
        }
    close(map);
    return count;
}

static void verify(void) {
    unsigned char page[PAGE];
    size_t bad = 0, first = 0;
    for (int which = 0; which < 2; which++)
        for (size_t i = 0; i < pages; i++) {
            make(page, which, i);
            if (memcmp(page, memory[which] + i * PAGE, PAGE) != 0 && bad++ == 0) first = i;
        }
    if (bad) printf("BAD %zu pages, the first %zu\n", bad, first);
    else printf("verified %zu pages\n", 2 * pages);
    fflush(stdout);
}

/* Has all large areas of a process pushed out once; KiB of it that are out then, or -1. */
static long push_once(const char *pid, int process) {
    char path[64], line[512];
    snprintf(path, sizeof path, "/proc/%s/maps", pid);
    FILE *maps = fopen(path, "r");
    if (!maps) return -1;
    while (fgets(line, sizeof line, maps)) {
        unsigned long from, to, inode;
        char rights[8];
        if (sscanf(line, "%lx-%lx %7s %*x %*s %lu", &from, &to, rights, &inode) != 4) continue;
        if ((inode && !strstr(line, "/memfd:")) || to - from < 16 << 20) continue;
        for (unsigned long at = from; at < to; at += 2 << 20) {
            unsigned long len = to - at < 2 << 20 ? to - at : 2 << 20;
            struct iovec part = {(void *)at, len};
            if (syscall(SYS_process_madvise, process, &part, 1UL, MADV_PAGEOUT, 0U) < 0) return -1;
        }
    }
    fclose(maps);
    snprintf(path, sizeof path, "/proc/%s/smaps_rollup", pid);
    FILE *sums = fopen(path, "r");
    long out = -1;
    while (sums && fgets(line, sizeof line, sums)) sscanf(line, "Swap: %ld", &out);
    if (sums) fclose(sums);
    return out;
}

/* The first time, huge pages are split and no more. */
static int push_out(const char *pid) {
    int process = syscall(SYS_pidfd_open, atoi(pid), 0);
    long out = -1;
    for (int turn = 0; turn < 3; turn++)
        if ((out = push_once(pid, process)) < 0) return 5;
    printf("%ld KiB are out\n", out);
    return 0;
}

static void ask(int signal) { (void)signal; asked = 1; }

int main(int argc, char **argv) {
    if (argc == 4) return swapon(argv[2], SWAP_FLAG_PREFER | atoi(argv[3])) ? 1 : 0;
    if (argc != 3) return 2;
    if (!strcmp(argv[1], "out")) return push_out(argv[2]);
    seed = strtoull(argv[1], NULL, 0);
    pages = strtoul(argv[2], NULL, 0);
    signal(SIGUSR1, ask);
    /* All but what is made below stays: it would go to whichever area has room. */
    if (mlockall(MCL_CURRENT)) return 4;
    for (int which = 0; which < 2; which++) {
        int sharing = which ? MAP_SHARED : MAP_PRIVATE;
        memory[which] = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, sharing | MAP_ANONYMOUS, -1, 0);
        if (memory[which] == MAP_FAILED) return 3;
        madvise(memory[which], pages * PAGE, MADV_NOHUGEPAGE);
        for (size_t i = 0; i < pages; i++) make(memory[which] + i * PAGE, which, i);
    }
    size_t out = 0;
    for (int turn = 0; turn < 50 && out < 2 * pages; turn++) {
        for (int which = 0; which < 2; which++) madvise(memory[which], pages * PAGE, MADV_PAGEOUT);
        usleep(100000);
        out = away();
    }
    printf("away %zu of %zu\n", out, 2 * pages);
    fflush(stdout);
    for (;;) {
        pause();
        if (asked) { asked = 0; verify(); }
    }
}

/* Four threads in known places, for a debugger to find in its core: `main` in
 * pause(), `sleeper` in a sleep, `reader` in a read, `spinner` in a loop with
 * a pattern in a vector register. Says what it has on its output. */
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

struct record {
    int number;
    char text[32];
    struct record *next;
};

volatile uint64_t marker;
struct record *records;
uint64_t *shared;
__thread int own;
static int ends[2];

static void *sleeper(void *unused)
{
    own = 11;
    struct timespec long_time = {100000, 0};
    nanosleep(&long_time, NULL);
    return unused;
}

static void *reader(void *unused)
{
    char byte;
    own = 22;
    if (read(ends[0], &byte, 1) != 1)
        return NULL;
    return unused;
}

static void *spinner(void *unused)
{
    own = 33;
    uint64_t pattern[2] = {0x1122334455667788, 0x99aabbccddeeff00};
    __asm__ volatile("movdqu (%0), %%xmm15\n\tmov $0x5ca1ab1e, %%r15\n\t"
                     "1: pause\n\tjmp 1b"
                     : : "r"(pattern) : "xmm15", "r15");
    return unused;
}

int main(void)
{
    pthread_t thread;
    marker = ((uint64_t)time(NULL) << 20) ^ (uint64_t)getpid();
    for (int i = 3; i > 0; i--) {
        struct record *new = malloc(sizeof *new);
        new->number = i * 100;
        snprintf(new->text, sizeof new->text, "record %d", i);
        new->next = records;
        records = new;
    }
    shared = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    shared[600] = marker + 1;
    if (pipe(ends))
        return 1;
    void *(*const all[])(void *) = {sleeper, reader, spinner};
    for (int i = 0; i < 3; i++)
        if (pthread_create(&thread, NULL, all[i], NULL))
            return 1;
    usleep(300000);
    printf("%lu\n", marker);
    fflush(stdout);
    for (;;)
        pause();
}

/* A program that always has five events in the ring of its asynchronous I/O
 * context: for each that it takes it makes a new one. It takes them in turn by
 * io_getevents and by looking into the ring itself, as QEMU does, and each must
 * be the one that follows. One request it only prepares, and says where
 * (DIR/iocb): should that ever be done, it is told in the log as `late`. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define WAITING 5
#define SLOTS 16
#define BYTES 512
#define LATE 0xfeedface12345678ull

struct ring {
    unsigned id, nr, head, tail, magic, compat, incompat, header;
    struct io_event events[];
};

static aio_context_t context;
static struct iocb slots[SLOTS], late;
static unsigned char buffers[SLOTS][BYTES], late_buffer[BYTES];
static int data, log_file;

static void bad(const char *what, unsigned long a, unsigned long b) {
    dprintf(log_file, "BAD %s: %lx, not %lx\n", what, a, b);
    exit(1);
}

static unsigned char pattern(unsigned long block, unsigned at) { return block * 7 + at; }

static void prepare(struct iocb *iocb, uint64_t number, unsigned long block, void *buffer) {
    memset(iocb, 0, sizeof *iocb);
    iocb->aio_data = number;
    iocb->aio_lio_opcode = IOCB_CMD_PREAD;
    iocb->aio_fildes = data;
    iocb->aio_buf = (uintptr_t)buffer;
    iocb->aio_nbytes = BYTES;
    iocb->aio_offset = block * BYTES;
}

static void submit(uint64_t number) {
    struct iocb *iocb = &slots[number % SLOTS];
    prepare(iocb, number, number % 100, buffers[number % SLOTS]);
    memset(buffers[number % SLOTS], 0xff, BYTES);
    long done = syscall(SYS_io_submit, context, 1, &iocb);
    if (done != 1)
        bad("io_submit", done, 1);
}

static struct io_event take(uint64_t turn) {
    struct io_event event;
    if (turn % 2) {
        if (syscall(SYS_io_getevents, context, 1, 1, &event, NULL) != 1)
            bad("io_getevents", 0, 1);
        return event;
    }
    struct ring *ring = (struct ring *)context;
    unsigned head = ring->head;
    if (head == __atomic_load_n(&ring->tail, __ATOMIC_ACQUIRE))
        bad("the ring is empty", head, head);
    event = ring->events[head];
    __atomic_store_n(&ring->head, (head + 1) % ring->nr, __ATOMIC_RELEASE);
    return event;
}

int main(int argc, char **argv) {
    char path[4096];
    if (argc < 2)
        return 2;
    snprintf(path, sizeof path, "%s/log", argv[1]);
    log_file = open(path, O_WRONLY | O_CREAT | O_APPEND, 0600);
    snprintf(path, sizeof path, "%s/data", argv[1]);
    data = open(path, O_RDWR | O_CREAT, 0600);
    for (unsigned long block = 0; block < 100; block++) {
        unsigned char bytes[BYTES];
        for (unsigned at = 0; at < BYTES; at++)
            bytes[at] = pattern(block, at);
        if (pwrite(data, bytes, BYTES, block * BYTES) != BYTES)
            return 3;
    }
    if (syscall(SYS_io_setup, 64, &context))
        bad("io_setup", 0, 0);
    prepare(&late, LATE, 42, late_buffer);
    snprintf(path, sizeof path, "%s/iocb", argv[1]);
    int where = open(path, O_WRONLY | O_CREAT, 0600);
    struct iocb *address = &late;
    if (write(where, &address, sizeof address) != sizeof address)
        return 4;
    close(where);

    unsigned long seen_late = 0, tick = 0;
    for (uint64_t number = 0; number < WAITING; number++)
        submit(number);
    for (uint64_t number = 0;; number++) {
        struct io_event event = take(number);
        if (event.data == LATE) {
            for (unsigned at = 0; at < BYTES; at++)
                if (late_buffer[at] != pattern(42, at))
                    bad("late byte", late_buffer[at], pattern(42, at));
            seen_late++;
            event = take(number);
        }
        if (event.data != number)
            bad("event", event.data, number);
        if (event.obj != (uintptr_t)&slots[number % SLOTS])
            bad("iocb", event.obj, (uintptr_t)&slots[number % SLOTS]);
        if (event.res != BYTES)
            bad("result", event.res, BYTES);
        for (unsigned at = 0; at < BYTES; at++)
            if (buffers[number % SLOTS][at] != pattern(number % 100, at))
                bad("byte", buffers[number % SLOTS][at], pattern(number % 100, at));
        submit(number + WAITING);
        /* By the first tick the ring has been gone round. */
        if (number < 400)
            continue;
        struct timespec now, pause = {0, 4000000};
        clock_gettime(CLOCK_MONOTONIC, &now);
        dprintf(log_file, "tick %lu pid %d mono %lu spins %lu late %lu\n", tick++, getpid(),
                now.tv_sec * 1000000000ul + now.tv_nsec, (unsigned long)number, seen_late);
        nanosleep(&pause, NULL);
    }
}

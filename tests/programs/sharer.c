/* A helper of a VMM, as a vhost-user device is: has the memory file of its guest mapped too.
 *
 *     sharer PID        maps PID's first memory file, says so, and waits
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    char directory[64], path[512], to[512];
    if (argc != 2)
        return 2;
    snprintf(directory, sizeof directory, "/proc/%s/fd", argv[1]);
    DIR *open_files = opendir(directory);
    if (!open_files)
        return 1;
    for (struct dirent *each; (each = readdir(open_files));) {
        snprintf(path, sizeof path, "%s/%s", directory, each->d_name);
        ssize_t length = readlink(path, to, sizeof to - 1);
        if (length < 7 || memcmp(to, "/memfd:", 7) != 0)
            continue;
        int fd = open(path, O_RDWR);
        if (fd < 0)
            return 1;
        if (mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) == MAP_FAILED)
            return 1;
        puts("it has the memory too");
        fflush(stdout);
        for (;;)
            pause();
    }
    return 1;
}

/* How often a word is in a file of any size.
 *
 *     finds FILE WORD
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

int main(int argc, char **argv)
{
    struct stat facts;
    if (argc != 3)
        return 2;
    int fd = open(argv[1], O_RDONLY);
    if (fd < 0 || fstat(fd, &facts) != 0)
        return 1;
    size_t left = facts.st_size, word = strlen(argv[2]);
    const char *at = mmap(NULL, left, PROT_READ, MAP_PRIVATE, fd, 0);
    if (at == MAP_FAILED)
        return 1;
    long found = 0;
    for (const char *next; (next = memmem(at, left, argv[2], word)); found++) {
        left -= next + word - at;
        at = next + word;
    }
    printf("%ld\n", found);
    return 0;
}

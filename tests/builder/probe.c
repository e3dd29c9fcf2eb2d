/* What a program in a room may try: one act for each first argument; says what came of it and its errno. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

static int said(long result)
{
    if (result < 0)
        printf("no %d\n", errno);
    else
        printf("yes\n");
    fflush(stdout);
    return 0;
}

/* connect PATH BYTES: keeps the connection until the other end closes it. */
static int connected(const char *path, const char *bytes)
{
    struct sockaddr_un at = { .sun_family = AF_UNIX };
    char answer;
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    strncpy(at.sun_path, path, sizeof at.sun_path - 1);
    if (connect(fd, (struct sockaddr *)&at, sizeof at) < 0)
        return said(-1);
    said(write(fd, bytes, strlen(bytes)));
    return read(fd, &answer, 1) < 0;
}

int main(int count, char **words)
{
    if (count > 2 && !strcmp(words[1], "call")) {
        /* call NUMBER ARGUMENT...: each a number, or a text after a colon. */
        long argument[7] = { 0 };
        for (int i = 0; i < 7 && i + 2 < count; i++)
            argument[i] = words[i + 2][0] == ':' ? (long)(words[i + 2] + 1)
                                                 : (long)strtoull(words[i + 2], 0, 0);
        return said(syscall(argument[0], argument[1], argument[2], argument[3], argument[4], argument[5],
                            argument[6]));
    }
    if (count > 3 && !strcmp(words[1], "connect"))
        return connected(words[2], words[3]);
    if (count > 3 && !strcmp(words[1], "open"))
        return said(open(words[2], strtol(words[3], 0, 0)));
    if (count > 1 && !strcmp(words[1], "i386")) {
        /* getpid by the 32-bit gate. */
        long result;
        __asm__ volatile("int $0x80" : "=a"(result) : "a"(20L) : "memory");
        return said(result < 0 ? -1 : result);
    }
    if (count > 3 && !strcmp(words[1], "ulp")) {
        /* ulp LEVEL OPTION: setsockopt on a TCP socket. */
        int fd = socket(AF_INET, SOCK_STREAM, 0);
        return said(setsockopt(fd, atoi(words[2]), atoi(words[3]), "none", 4));
    }
    if (count > 2 && !strcmp(words[1], "bytes")) {
        /* bytes MIB: touches so much memory. */
        size_t size = strtoull(words[2], 0, 0) << 20;
        memset(mmap(0, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), 1, size);
        return said(0);
    }
    fprintf(stderr, "probe: what?\n");
    return 2;
}

/* Stands in for bay0 in tests of the container ground: it has a child, says the stages, writes down what it was
   given, and ends the way a signal asks for: TERM power-off, USR1 reboot, USR2 panic. */
#include <dirent.h>
#include <signal.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

static void end(int number) { _exit(number == SIGTERM ? 0 : number == SIGUSR1 ? 3 : 70); }

int main(void)
{
    char text[1024] = "";
    struct stat seen;
    struct dirent *entry;
    signal(SIGTERM, end);
    signal(SIGUSR1, end);
    signal(SIGUSR2, end);
    if (fork() == 0)
        for (;;)
            pause();
    setvbuf(stdout, NULL, _IOLBF, 0);
    printf("spine: stage bay0 1\npid %d\n", getpid());
    for (int fd = 0; fd < 4096; fd++)
        if (fstat(fd, &seen) == 0)
            printf("fd %d\n", fd);
    DIR *devices = opendir("/dev");
    while ((entry = readdir(devices)))
        if (entry->d_name[0] != '.')
            printf("dev %s\n", entry->d_name);
    closedir(devices);
    gethostname(text, sizeof text);
    printf("host %s\n", text);
    printf("root %s\n", fopen("/x", "w") ? "written" : "refused");
    FILE *ground = fopen("/run/spine/ground.json", "r");
    if (ground && fgets(text, sizeof text, ground))
        printf("ground %s", text);
    printf("spine: stage ready 2\n");
    for (;;)
        pause();
}

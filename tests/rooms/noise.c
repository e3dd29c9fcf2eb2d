/* noise: speaks on a Unix socket as no honest program would. What is sent comes from the input.
 *
 *     noise talk PATH SECONDS            sends it, then takes what comes until the far end closes or the time is over
 *     noise hold PATH                    sends it, says `held`, keeps the connection until it is ended
 *     noise flood PATH COUNT SECONDS     opens so many connections, sends it on each, and counts how they end
 *     noise descriptors PATH COUNT TIMES sends it so many times, each time with so many descriptors beside it
 *     noise scatter PATH SIZE SECONDS    cuts it into pieces, sends each on a connection of its own, one after another
 *     noise deaf PATH                    sends it again and again and never reads, until it can send no more
 *
 * The last line of the output is `closed` or `open`: what the far end did with the connection. */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { INPUT_MAX = 4 << 20, FDS_MAX = 253, CONNECTIONS_MAX = 1000 };

static char input[INPUT_MAX];
static size_t length;

static int dial(const char *path)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	strncpy(address.sun_path, path, sizeof address.sun_path - 1);
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0 || connect(fd, (void *)&address, sizeof address) < 0) {
		int error = errno;
		close(fd);
		errno = error;
		return -1;
	}
	return fd;
}

/* Whether all of it went out. A far end that closes is no error of ours. */
static int send_all(int fd)
{
	for (size_t sent = 0; sent < length;) {
		ssize_t once = send(fd, input + sent, length - sent, MSG_NOSIGNAL);
		if (once < 0)
			return 0;
		sent += once;
	}
	return 1;
}

static double now(void)
{
	struct timespec time;
	clock_gettime(CLOCK_BOOTTIME, &time);
	return time.tv_sec + time.tv_nsec / 1e9;
}

/* Prints what comes as hexadecimal digits; 1 when the far end closed before the time was over. */
static int take(int fd, double seconds)
{
	char data[65536];
	double end = now() + seconds;
	for (;;) {
		struct pollfd wait = {.fd = fd, .events = POLLIN};
		double left = end - now();
		if (left <= 0 || poll(&wait, 1, left * 1000 + 1) <= 0)
			return 0;
		ssize_t got = recv(fd, data, sizeof data, 0);
		if (got <= 0)
			return 1;
		for (ssize_t i = 0; i < got; i++)
			printf("%02x", (unsigned char)data[i]);
	}
}

static int flood(const char *path, int count, double seconds)
{
	static struct pollfd open_ones[CONNECTIONS_MAX];
	int made = 0, closed = 0, refused = 0;
	for (int i = 0; i < count && i < CONNECTIONS_MAX; i++) {
		int fd = dial(path);
		if (fd < 0) {
			refused++;
			continue;
		}
		send_all(fd);
		open_ones[made++] = (struct pollfd){.fd = fd, .events = POLLRDHUP};
	}
	double end = now() + seconds;
	while (closed < made && now() < end) {
		/* What was not closed for so long after the others is kept. */
		if (poll(open_ones, made, 3000) <= 0)
			break;
		for (int i = 0; i < made; i++)
			if (open_ones[i].fd >= 0 && open_ones[i].revents & (POLLRDHUP | POLLHUP | POLLERR)) {
				open_ones[i].fd = -1;
				closed++;
			}
	}
	printf("made %d refused %d closed %d\n", made, refused, closed);
	return closed == made;
}

static int scatter(const char *path, size_t size, double seconds)
{
	char *all = input;
	size_t left = length;
	int pieces = 0, closed = 0;
	for (; size && left; all += length, left -= length, pieces++) {
		length = left < size ? left : size;
		int fd = dial(path);
		if (fd < 0)
			return -1;
		for (size_t sent = 0; sent < length;) {
			ssize_t once = send(fd, all + sent, length - sent, MSG_NOSIGNAL);
			if (once < 0)
				break;
			sent += once;
		}
		closed += take(fd, seconds);
		close(fd);
		printf("\n");
	}
	printf("pieces %d closed %d\n", pieces, closed);
	return closed == pieces;
}

static int descriptors(const char *path, int count, int times)
{
	union {
		char bytes[CMSG_SPACE(sizeof(int) * FDS_MAX)];
		struct cmsghdr header;
	} control = {0};
	struct iovec data = {input, length};
	struct msghdr message = {
		.msg_iov = &data, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = CMSG_SPACE(sizeof(int) * count)};
	int fd = dial(path), fds[FDS_MAX], sent = 0;
	if (fd < 0 || count > FDS_MAX)
		return -1;
	for (int i = 0; i < count; i++)
		fds[i] = open("/dev/null", O_RDONLY | O_CLOEXEC);
	control.header = (struct cmsghdr){
		.cmsg_len = CMSG_LEN(sizeof(int) * count), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS};
	memcpy(CMSG_DATA(&control.header), fds, sizeof(int) * count);
	while (sent < times && sendmsg(fd, &message, MSG_NOSIGNAL) > 0)
		sent++;
	printf("sent %d\n", sent);
	fflush(stdout);
	return take(fd, 5);
}

static int deaf(const char *path)
{
	int fd = dial(path);
	size_t sent = 0;
	if (fd < 0)
		return -1;
	fcntl(fd, F_SETFL, O_NONBLOCK);
	for (;;) {
		struct pollfd wait = {.fd = fd, .events = POLLOUT};
		ssize_t once = send(fd, input + sent % length, length - sent % length, MSG_NOSIGNAL);
		if (once > 0) {
			sent += once;
			continue;
		}
		if (once < 0 && errno != EAGAIN) {
			printf("sent %zu\n", sent);
			return 1;
		}
		if (poll(&wait, 1, 3000) == 0) {
			printf("sent %zu\n", sent);
			return 0;
		}
	}
}

int main(int count, char **words)
{
	struct rlimit files;
	int closed = -1, fd;
	ssize_t got;
	signal(SIGPIPE, SIG_IGN);
	getrlimit(RLIMIT_NOFILE, &files);
	files.rlim_cur = files.rlim_max;
	setrlimit(RLIMIT_NOFILE, &files);
	while (length < sizeof input && (got = read(0, input + length, sizeof input - length)) > 0)
		length += got;
	if (count == 4 && !strcmp(words[1], "talk")) {
		if ((fd = dial(words[2])) >= 0) {
			send_all(fd);
			closed = take(fd, atof(words[3]));
			printf("\n");
		}
	} else if (count == 3 && !strcmp(words[1], "hold")) {
		if ((fd = dial(words[2])) >= 0 && send_all(fd)) {
			printf("held\n");
			fflush(stdout);
			closed = take(fd, 3600);
		}
	} else if (count == 5 && !strcmp(words[1], "flood"))
		closed = flood(words[2], atoi(words[3]), atof(words[4]));
	else if (count == 5 && !strcmp(words[1], "descriptors"))
		closed = descriptors(words[2], atoi(words[3]), atoi(words[4]));
	else if (count == 5 && !strcmp(words[1], "scatter"))
		closed = scatter(words[2], atoi(words[3]), atof(words[4]));
	else if (count == 3 && !strcmp(words[1], "deaf"))
		closed = deaf(words[2]);
	else
		return 2;
	if (closed < 0) {
		perror("noise");
		return 1;
	}
	printf("%s\n", closed ? "closed" : "open");
	return 0;
}

/* attack: tries to leave a room, one way at a time.
 *
 *     attack NAME [WORD ...]     one attack: `reached: WHAT` and exit code 0, or `refused: ERRNO` and 1; 2: misuse
 *     attack each                the same for each line of the input; the answers are numbered from 1
 *     attack victim MARK DIR     makes one of each thing that others must not reach, says `ready`, waits for its end
 *     attack end WORD             ends every process that was started with this first word
 *     attack idle                the first process of a room: takes in orphans, does nothing
 *
 * An attack is "reached" only when the thing itself was had: the byte read, the descriptor got, the call let
 * through to what it does. It runs in a child of its own, so one that a filter kills is a refusal by that signal.
 *
 * Each is harmless when it succeeds, for it does so as root on the machine of whoever runs the tests: what would
 * end, change or load something is called so that the kernel looks at the right first and at a wrong argument
 * after it (the wrong magic of reboot, a module of no bytes); devices are opened, never read or written; time and
 * names are set to what they are. The rest happens in namespaces that the test throws away.
 *
 * In front of an attack's name may stand, for the controls: `chrooted DIR` (without a chdir), `holding PATH` (a
 * descriptor of it stays open), `joined DIR` (in that cgroup). */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/if_link.h>
#include <linux/magic.h>
#include <linux/netfilter/nf_tables.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <mqueue.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/ipc.h>
#include <sys/klog.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/msg.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysinfo.h>
#include <sys/vfs.h>
#include <sys/sysmacros.h>
#include <sys/timex.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

enum { PATIENCE_S = 30, WORDS_MAX = 32, LINE_MAX_BYTES = 4096, SAID_BYTES = 400, BOMB_MAX = 65536 };
/* Where the victim's secret lies when it is linked at a fixed place. */
#define IMAGE_START 0x400000UL

static int answer_fd = -1;

/* ---- how an attack ends ---------------------------------------------------------------------------------- */

static void say(int code, const char *word, const char *format, va_list arguments)
{
	char text[SAID_BYTES];
	int used = snprintf(text, sizeof text, "%s: ", word);
	vsnprintf(text + used, sizeof text - used, format, arguments);
	if (write(answer_fd, text, strlen(text)) < 0)
		code = 3;
	_exit(code);
}

__attribute__((noreturn, format(printf, 1, 2))) static void reached(const char *format, ...)
{
	va_list arguments;
	va_start(arguments, format);
	say(0, "reached", format, arguments);
	__builtin_unreachable();
}

__attribute__((noreturn, format(printf, 2, 3))) static void refused_for(int error, const char *format, ...)
{
	char text[SAID_BYTES];
	va_list arguments;
	const char *name = error ? strerrorname_np(error) : "NOTHING";
	int used = snprintf(text, sizeof text, "refused: %s ", name ? name : "?");
	va_start(arguments, format);
	vsnprintf(text + used, sizeof text - used, format, arguments);
	if (write(answer_fd, text, strlen(text)) < 0)
		_exit(3);
	_exit(1);
}

__attribute__((noreturn)) static void refused(const char *what)
{
	refused_for(errno, "%s", what);
}

__attribute__((noreturn)) static void misused(const char *what)
{
	dprintf(answer_fd, "misused: %s", what);
	_exit(2);
}

/* The call answered `got`; the kernel looks at the right to make it before it finds the error `wrong`. */
__attribute__((noreturn)) static void reached_when(long got, int wrong, const char *what)
{
	if (got >= 0 || errno == wrong)
		reached("%s", what);
	refused(what);
}

static const char *word(int count, char **words, int at)
{
	if (at >= count)
		misused("a word is missing");
	return words[at];
}

static long number(int count, char **words, int at)
{
	return strtol(word(count, words, at), NULL, 0);
}

/* A directory of our own that we can write to. */
static const char *scratch(void)
{
	static char path[64];
	static const char *const places[] = {"/tmp", "/run", "/dev/shm", "/var/tmp", "/root", ""};
	for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
		snprintf(path, sizeof path, "%s/attack-XXXXXX", places[i]);
		if (mkdtemp(path))
			return path;
	}
	refused("no directory can be written to");
}

static ssize_t contents(const char *path, char *to, size_t room)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	if (fd < 0)
		return -1;
	ssize_t got = read(fd, to, room - 1);
	int error = errno;
	close(fd);
	errno = error;
	to[got > 0 ? got : 0] = 0;
	return got;
}

/* ---- another process ------------------------------------------------------------------------------------- */

/* The victim: the process whose command line has the mark; else one of the given numbers that our own /proc does
 * not know, so that it is none of ours. */
static pid_t victim(int count, char **words)
{
	const char *mark = word(count, words, 1);
	char path[300], line[LINE_MAX_BYTES];
	struct dirent *entry;
	DIR *proc = opendir("/proc");
	while (proc && (entry = readdir(proc))) {
		pid_t pid = atoi(entry->d_name);
		if (pid <= 0 || pid == getpid() || pid == getppid())
			continue;
		snprintf(path, sizeof path, "/proc/%d/cmdline", pid);
		ssize_t got = contents(path, line, sizeof line);
		for (ssize_t i = 0; i + 1 < got; i++)
			if (!line[i])
				line[i] = ' ';
		if (got > 0 && strstr(line, mark) && strstr(line, "victim"))
			return pid;
	}
	for (int i = 2; i < count; i++) {
		snprintf(path, sizeof path, "/proc/%s", words[i]);
		if (access(path, F_OK) < 0 && errno == ENOENT && kill(atoi(words[i]), 0) == 0)
			return atoi(words[i]);
	}
	errno = ESRCH;
	refused("no process with the mark, and none of the numbers is there");
}

static void process_seen(int count, char **words)
{
	reached("process %d", victim(count, words));
}

static void process_signal(int count, char **words)
{
	pid_t pid = victim(count, words);
	if (kill(pid, 0) < 0)
		refused("kill");
	reached("process %d can be signalled", pid);
}

static void process_ptrace(int count, char **words)
{
	if (ptrace(PTRACE_SEIZE, victim(count, words), 0, 0) < 0)
		refused("ptrace");
	reached("traced");
}

static void process_read(int count, char **words)
{
	char got[4] = "";
	struct iovec here = {got, sizeof got}, there = {(void *)IMAGE_START, sizeof got};
	if (process_vm_readv(victim(count, words), &here, 1, &there, 1, 0) < 0)
		refused("process_vm_readv");
	reached("read %.3s", got + 1);
}

static void process_memory(int count, char **words)
{
	char path[64], got[4] = "";
	snprintf(path, sizeof path, "/proc/%d/mem", victim(count, words));
	int fd = open(path, O_RDWR);
	if (fd < 0 || pread(fd, got, sizeof got, IMAGE_START) < 0)
		refused(path);
	reached("read %.3s", got + 1);
}

static void process_environ(int count, char **words)
{
	char path[64], got[LINE_MAX_BYTES];
	snprintf(path, sizeof path, "/proc/%d/environ", victim(count, words));
	if (contents(path, got, sizeof got) < 0)
		refused(path);
	reached("%.40s", got);
}

static void process_fd(int count, char **words)
{
	char path[64];
	snprintf(path, sizeof path, "/proc/%d/fd/0", victim(count, words));
	int fd = open(path, O_PATH);
	if (fd < 0)
		refused(path);
	reached("%s", path);
}

static void process_root(int count, char **words)
{
	char path[64];
	snprintf(path, sizeof path, "/proc/%d/root/", victim(count, words));
	if (open(path, O_RDONLY | O_DIRECTORY) < 0)
		refused(path);
	reached("%s", path);
}

static void process_descriptor(int count, char **words)
{
	int pidfd = syscall(SYS_pidfd_open, victim(count, words), 0);
	if (pidfd < 0)
		refused("pidfd_open");
	if (syscall(SYS_pidfd_getfd, pidfd, 0, 0) < 0)
		refused("pidfd_getfd");
	reached("its input");
}

static void process_compare(int count, char **words)
{
	enum { KCMP_VM = 1 };
	if (syscall(SYS_kcmp, getpid(), victim(count, words), KCMP_VM, 0, 0) < 0)
		refused("kcmp");
	reached("compared");
}

static void process_limits(int count, char **words)
{
	struct rlimit limit;
	if (prlimit(victim(count, words), RLIMIT_CORE, NULL, &limit) < 0)
		refused("prlimit");
	reached("its limits");
}

static const struct {
	const char *name;
	unsigned long flag;
} namespaces[] = {
	{"user", CLONE_NEWUSER}, {"mnt", CLONE_NEWNS},   {"pid", CLONE_NEWPID},       {"net", CLONE_NEWNET},
	{"ipc", CLONE_NEWIPC},   {"uts", CLONE_NEWUTS},  {"cgroup", CLONE_NEWCGROUP}, {"time", 0x80 /* CLONE_NEWTIME */},
};

static unsigned long namespace_flag(const char *name)
{
	for (size_t i = 0; i < sizeof namespaces / sizeof *namespaces; i++)
		if (!strcmp(namespaces[i].name, name))
			return namespaces[i].flag;
	misused("no such namespace");
}

/* process-setns MARK KIND PID...: by its /proc entry. */
static void process_setns(int count, char **words)
{
	char path[64], *rest[WORDS_MAX] = {words[0], words[1]};
	const char *kind = word(count, words, 2);
	for (int i = 3; i < count; i++)
		rest[i - 1] = words[i];
	snprintf(path, sizeof path, "/proc/%d/ns/%s", victim(count - 1, rest), kind);
	int fd = open(path, O_RDONLY);
	if (fd < 0 || setns(fd, 0) < 0)
		refused(path);
	reached("%s", path);
}

/* own-setns KIND: into the namespace of the first process that we can see. */
static void own_setns(int count, char **words)
{
	char path[64];
	snprintf(path, sizeof path, "/proc/1/ns/%s", word(count, words, 1));
	int fd = open(path, O_RDONLY);
	if (fd < 0 || setns(fd, 0) < 0)
		refused(path);
	reached("%s", path);
}

/* ---- other's sockets, shared memory, files ---------------------------------------------------------------- */

static void connect_unix(const char *name, int abstract)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	size_t length = strlen(name);
	if (length + 1 >= sizeof address.sun_path)
		misused("too long");
	memcpy(address.sun_path + abstract, name, length);
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);
	if (fd < 0)
		refused("socket");
	if (connect(fd, (void *)&address, offsetof(struct sockaddr_un, sun_path) + abstract + length + !abstract) < 0)
		refused("connect");
	reached("connected to %s", name);
}

static void unix_abstract(int count, char **words)
{
	connect_unix(word(count, words, 1), 1);
}

static void unix_path(int count, char **words)
{
	connect_unix(word(count, words, 1), 0);
}

static void tcp_loopback(int count, char **words)
{
	struct sockaddr_in address = {
		.sin_family = AF_INET, .sin_port = htons(number(count, words, 1)), .sin_addr = {htonl(INADDR_LOOPBACK)}};
	int fd = socket(AF_INET, SOCK_STREAM, 0);
	if (fd < 0)
		refused("socket");
	if (connect(fd, (void *)&address, sizeof address) < 0)
		refused("connect");
	reached("connected");
}

static void sysv_memory(int count, char **words)
{
	int id = shmget(number(count, words, 1), 0, 0);
	if (id < 0)
		refused("shmget");
	void *at = shmat(id, NULL, SHM_RDONLY);
	if (at == (void *)-1)
		refused("shmat");
	reached("%.20s", (char *)at);
}

static void sysv_queue(int count, char **words)
{
	if (msgget(number(count, words, 1), 0) < 0)
		refused("msgget");
	reached("the queue");
}

static void sysv_semaphore(int count, char **words)
{
	if (semget(number(count, words, 1), 0, 0) < 0)
		refused("semget");
	reached("the semaphore");
}

static void posix_queue(int count, char **words)
{
	if (mq_open(word(count, words, 1), O_RDONLY) == (mqd_t)-1)
		refused("mq_open");
	reached("the queue");
}

/* file PATH...: the first of them that can be opened, for reading or as a directory. */
static void file(int count, char **words)
{
	int worst = ENOENT;
	for (int i = 1; i < count; i++) {
		if (open(words[i], O_RDONLY | O_NONBLOCK | O_NOCTTY) >= 0)
			reached("%s", words[i]);
		if (errno != ENOENT)
			worst = errno;
	}
	refused_for(worst, "%d paths", count - 1);
}

/* file-write PATH...: opened for writing, and nothing written. */
static void file_write(int count, char **words)
{
	int worst = ENOENT;
	for (int i = 1; i < count; i++) {
		if (open(words[i], O_WRONLY | O_NONBLOCK | O_NOCTTY) >= 0)
			reached("%s", words[i]);
		if (errno != ENOENT)
			worst = errno;
	}
	refused_for(worst, "%d paths", count - 1);
}

/* file-read PATH...: a byte of one of them. */
static void file_read(int count, char **words)
{
	char got[64];
	int worst = ENOENT;
	for (int i = 1; i < count; i++) {
		ssize_t length = contents(words[i], got, sizeof got);
		if (length > 0)
			reached("%s", words[i]);
		if (length < 0 && errno != ENOENT)
			worst = errno;
	}
	refused_for(worst, "%d paths", count - 1);
}

/* kernel-file PATH: one of the kernel's own opened, not what was laid over it. Nothing is read: reading some takes. */
static void kernel_file(int count, char **words)
{
	struct statfs system;
	int fd = open(word(count, words, 1), O_RDONLY | O_NONBLOCK);
	if (fd < 0 || fstatfs(fd, &system) < 0)
		refused(words[1]);
	if (system.f_type == PROC_SUPER_MAGIC || system.f_type == SYSFS_MAGIC)
		reached("%s", words[1]);
	refused_for(0, "something else is there");
}

/* counters-stat, counters-loadavg: what the whole machine does, in a file that may stand in for the kernel's. */
static void counters_stat(int count, char **words)
{
	unsigned long long user, nice, system, idle;
	char line[LINE_MAX_BYTES];
	(void)count, (void)words;
	if (contents("/proc/stat", line, sizeof line) < 0)
		refused("/proc/stat");
	if (sscanf(line, "cpu %llu %llu %llu %llu", &user, &nice, &system, &idle) != 4)
		refused_for(EBADMSG, "/proc/stat");
	if (user + nice + system + idle)
		reached("%llu ticks in programs, %llu in the kernel, %llu idle", user, system, idle);
	refused_for(0, "every counter is at rest");
}

static void counters_loadavg(int count, char **words)
{
	int running, tasks;
	char line[LINE_MAX_BYTES];
	(void)count, (void)words;
	if (contents("/proc/loadavg", line, sizeof line) < 0)
		refused("/proc/loadavg");
	if (sscanf(line, "%*f %*f %*f %d/%d", &running, &tasks) != 2)
		refused_for(EBADMSG, "/proc/loadavg");
	if (tasks > 1)
		reached("%d tasks, %d of them run", tasks, running);
	refused_for(0, "at rest");
}

static void counters_call(int count, char **words)
{
	struct sysinfo all;
	(void)count, (void)words;
	if (sysinfo(&all) < 0)
		refused("sysinfo");
	if (all.procs > 1 || all.loads[0])
		reached("%d tasks, load %lu", all.procs, all.loads[0]);
	refused_for(0, "at rest");
}

/* ---- namespaces and mounts ------------------------------------------------------------------------------- */

static void unshare_one(int count, char **words)
{
	if (unshare(namespace_flag(word(count, words, 1))) < 0)
		refused("unshare");
	reached("a new namespace");
}

static void born(long pid, const char *what)
{
	if (pid == 0)
		_exit(0);
	if (pid < 0)
		refused(what);
	waitpid(pid, NULL, __WALL);
	reached("a child in a new namespace");
}

static void clone_one(int count, char **words)
{
	unsigned long flag = namespace_flag(word(count, words, 1));
	if (flag == 0x80)
		misused("the flag of the time namespace is the end signal of clone");
	born(syscall(SYS_clone, flag | SIGCHLD, 0, 0, 0, 0), "clone");
}

static void clone3_one(int count, char **words)
{
	uint64_t arguments[11] = {[0] = namespace_flag(word(count, words, 1)), [4] = SIGCHLD};
	born(syscall(SYS_clone3, arguments, sizeof arguments), "clone3");
}

static void mount_one(int count, char **words)
{
	const char *type = word(count, words, 1), *data = count > 2 ? words[2] : NULL;
	if (mount("none", scratch(), type, 0, data) < 0)
		refused("mount");
	reached("%s mounted", type);
}

static void mount_overlay(int count, char **words)
{
	char upper[64], work[64], options[256];
	(void)count, (void)words;
	strcpy(upper, scratch());
	strcpy(work, scratch());
	snprintf(options, sizeof options, "lowerdir=/proc,upperdir=%s,workdir=%s", upper, work);
	/* Another superblock below is refused late: what counts is that the mount was tried. */
	reached_when(mount("none", scratch(), "overlay", 0, options), EINVAL, "overlay");
}

static void mount_bind(int count, char **words)
{
	(void)count, (void)words;
	if (mount("/", scratch(), NULL, MS_BIND | MS_REC, NULL) < 0)
		refused("mount");
	reached("the root bound");
}

static void remount(int count, char **words)
{
	if (mount(NULL, word(count, words, 1), NULL, MS_REMOUNT | MS_BIND, NULL) < 0)
		refused("mount");
	reached("%s can be written to", words[1]);
}

static void unmount(int count, char **words)
{
	if (umount2(word(count, words, 1), MNT_DETACH) < 0)
		refused("umount2");
	reached("%s uncovered", words[1]);
}

static void pivot(int count, char **words)
{
	(void)count, (void)words;
	reached_when(syscall(SYS_pivot_root, "/no/such/place", "/no/such/place"), ENOENT, "pivot_root");
}

static void open_tree_one(int count, char **words)
{
	(void)count, (void)words;
	if (syscall(SYS_open_tree, AT_FDCWD, "/", 1 /* OPEN_TREE_CLONE */ | O_CLOEXEC | AT_RECURSIVE) < 0)
		refused("open_tree");
	reached("a copy of the tree");
}

static void move_mount_one(int count, char **words)
{
	(void)count, (void)words;
	/* The kernel asks for the right before it looks at the paths. */
	reached_when(syscall(SYS_move_mount, AT_FDCWD, "/no/such/place", AT_FDCWD, "/", 0), ENOENT, "move_mount");
}

static void fsopen_one(int count, char **words)
{
	int fd = syscall(SYS_fsopen, word(count, words, 1), 1 /* FSOPEN_CLOEXEC */);
	if (fd < 0)
		refused("fsopen");
	if (syscall(SYS_fsconfig, fd, 6 /* FSCONFIG_CMD_CREATE */, NULL, NULL, 0) < 0)
		refused("fsconfig");
	if (syscall(SYS_fsmount, fd, 1, 0) < 0)
		refused("fsmount");
	reached("%s", words[1]);
}

static void fspick_one(int count, char **words)
{
	(void)count, (void)words;
	if (syscall(SYS_fspick, AT_FDCWD, "/", 1) < 0)
		refused("fspick");
	reached("the root's superblock");
}

static void mount_setattr_one(int count, char **words)
{
	uint64_t attributes[4] = {0};
	(void)count, (void)words;
	reached_when(syscall(SYS_mount_setattr, AT_FDCWD, "/", 0, attributes, sizeof attributes), 0, "mount_setattr");
}

/* foreign-mount: a file system of the spine or of a disk in our table of mounts. */
static void foreign_mount(int count, char **words)
{
	static const char *const ours[] = {"overlay", "tmpfs", "proc", "devpts", "mqueue"};
	char line[LINE_MAX_BYTES], type[64], source[256];
	int seen = 0;
	(void)count, (void)words;
	FILE *table = fopen("/proc/self/mountinfo", "re");
	if (!table)
		refused("mountinfo");
	while (fgets(line, sizeof line, table)) {
		char *rest = strstr(line, " - ");
		int known = 0;
		if (!rest || sscanf(rest, " - %63s %255s", type, source) != 2)
			continue;
		for (size_t i = 0; i < sizeof ours / sizeof *ours; i++)
			known |= !strcmp(type, ours[i]);
		seen++;
		if (!known)
			reached("%s of type %s", source, type);
	}
	refused_for(0, "%d mounts, all of our own", seen);
}

/* ---- devices and cgroups --------------------------------------------------------------------------------- */

/* node b|c MAJOR:MINOR...: a node of one of these made and opened. */
static void node(int count, char **words)
{
	char path[100];
	mode_t kind = *word(count, words, 1) == 'b' ? S_IFBLK : S_IFCHR;
	const char *folder = scratch();
	int last = EINVAL;
	for (int i = 2; i < count; i++) {
		unsigned major_number, minor_number;
		if (sscanf(words[i], "%u:%u", &major_number, &minor_number) != 2)
			misused("MAJOR:MINOR");
		snprintf(path, sizeof path, "%s/%d", folder, i);
		if (mknod(path, kind | 0600, makedev(major_number, minor_number)) < 0) {
			last = errno;
			continue;
		}
		if (open(path, O_RDONLY | O_NONBLOCK | O_NOCTTY) >= 0)
			reached("device %s", words[i]);
		last = errno;
	}
	refused_for(last, "%d devices", count - 2);
}

/* foreign-device: something in /dev besides what every program may have. None is opened. */
static int foreign_node(const char *folder, int depth)
{
	static const char *const ours = " null zero full random urandom tty ptmx console ";
	struct dirent *entry;
	char path[600], name[300];
	struct stat facts;
	DIR *open_folder = opendir(folder);
	int seen = 0;
	if (!open_folder)
		return 0;
	while ((entry = readdir(open_folder))) {
		snprintf(path, sizeof path, "%s/%s", folder, entry->d_name);
		snprintf(name, sizeof name, " %s ", entry->d_name);
		if (entry->d_name[0] == '.' || lstat(path, &facts) < 0)
			continue;
		seen++;
		if (S_ISDIR(facts.st_mode) && depth < 4 && strcmp(path, "/dev/pts"))
			seen += foreign_node(path, depth + 1);
		if (S_ISBLK(facts.st_mode) || (S_ISCHR(facts.st_mode) && !strstr(ours, name)))
			reached("%s", path);
	}
	closedir(open_folder);
	return seen;
}

static void foreign_device(int count, char **words)
{
	(void)count, (void)words;
	refused_for(0, "%d entries, all of our own", foreign_node("/dev", 0));
}

/* The folder of our own cgroup, wherever the version 2 tree can be seen. */
static const char *own_cgroup(void)
{
	static char folder[2 * LINE_MAX_BYTES];
	char line[LINE_MAX_BYTES], place[1024] = "";
	FILE *table = fopen("/proc/self/mountinfo", "re");
	while (table && fgets(line, sizeof line, table))
		if (strstr(line, " - cgroup2 "))
			sscanf(line, "%*s %*s %*s %*s %1023s", place);
	if (!*place && mount("none", strcpy(place, scratch()), "cgroup2", 0, NULL) < 0)
		refused("there is no cgroup tree, and none can be mounted");
	FILE *own = fopen("/proc/self/cgroup", "re");
	while (own && fgets(line, sizeof line, own))
		if (!strncmp(line, "0::", 3)) {
			line[strcspn(line, "\n")] = 0;
			snprintf(folder, sizeof folder, "%s%s", place, line + 3);
			return folder;
		}
	refused("/proc/self/cgroup");
}

static void write_word(const char *folder, const char *name, const char *text)
{
	char path[2 * LINE_MAX_BYTES + 64];
	snprintf(path, sizeof path, "%s/%s", folder, name);
	int fd = open(path, O_WRONLY);
	if (fd < 0 || write(fd, text, strlen(text)) < 0)
		refused(name);
	reached("%s", path);
}

static void cgroup_thaw(int count, char **words)
{
	(void)count, (void)words;
	write_word(own_cgroup(), "cgroup.freeze", "0");
}

static void cgroup_leave(int count, char **words)
{
	(void)count, (void)words;
	write_word(own_cgroup(), "../cgroup.procs", "0");
}

/* ---- the kernel's doors ---------------------------------------------------------------------------------- */

static void socket_one(int count, char **words)
{
	if (socket(number(count, words, 1), number(count, words, 2), number(count, words, 3)) < 0)
		refused("socket");
	reached("a socket");
}

/* Sends netlink messages and reads the answer to the last one. */
static void netlink(int protocol, void *messages, size_t length, const char *what)
{
	char got[8192];
	struct sockaddr_nl kernel = {.nl_family = AF_NETLINK};
	int fd = socket(AF_NETLINK, SOCK_RAW, protocol);
	if (fd < 0)
		refused("socket");
	if (sendto(fd, messages, length, 0, (void *)&kernel, sizeof kernel) < 0)
		refused("sendto");
	ssize_t size = recv(fd, got, sizeof got, 0);
	struct nlmsghdr *header = (void *)got;
	if (size < (ssize_t)NLMSG_LENGTH(sizeof(struct nlmsgerr)) || header->nlmsg_type != NLMSG_ERROR)
		refused_for(EBADMSG, "%s", what);
	errno = -((struct nlmsgerr *)NLMSG_DATA(header))->error;
	if (errno)
		refused(what);
	reached("%s", what);
}

static void link_up(int count, char **words)
{
	struct {
		struct nlmsghdr header;
		struct ifinfomsg link;
	} message = {
		{sizeof message, RTM_NEWLINK, NLM_F_REQUEST | NLM_F_ACK, 1, 0},
		{.ifi_index = 1, .ifi_flags = IFF_UP, .ifi_change = IFF_UP},
	};
	(void)count, (void)words;
	netlink(NETLINK_ROUTE, &message, sizeof message, "the state of a link set");
}

static void link_add(int count, char **words)
{
	struct {
		struct nlmsghdr header;
		struct ifinfomsg link;
		struct rtattr info, kind;
		char name[8];
	} message = {
		{sizeof message, RTM_NEWLINK, NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL, 1, 0},
		{0},
		{2 * sizeof(struct rtattr) + 8, IFLA_LINKINFO},
		{sizeof(struct rtattr) + 5, IFLA_INFO_KIND},
		"veth",
	};
	(void)count, (void)words;
	netlink(NETLINK_ROUTE, &message, sizeof message, "a link made");
}

static void filter_change(int count, char **words)
{
	struct part {
		struct nlmsghdr header;
		struct nfgenmsg family;
	};
	struct {
		struct part begin;
		struct part table;
		struct rtattr attribute;
		char name[8];
		struct part end;
	} message = {
		{{sizeof(struct part), NFNL_MSG_BATCH_BEGIN, NLM_F_REQUEST, 1, 0}, {0, 0, htons(NFNL_SUBSYS_NFTABLES)}},
		{{sizeof(struct part) + 12, NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_NEWTABLE,
		  NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE, 2, 0},
		 {1 /* NFPROTO_INET */, 0, 0}},
		{12, NFTA_TABLE_NAME},
		"attack",
		{{sizeof(struct part), NFNL_MSG_BATCH_END, NLM_F_REQUEST, 3, 0}, {0, 0, htons(NFNL_SUBSYS_NFTABLES)}},
	};
	(void)count, (void)words;
	netlink(12 /* NETLINK_NETFILTER */, &message, sizeof message, "a table of the packet filter");
}

/* An established connection with itself, for the protocols that put themselves on top of one. */
static void tcp_layer(int count, char **words)
{
	const char *layer = word(count, words, 1);
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
	socklen_t length = sizeof address;
	int heard = socket(AF_INET, SOCK_STREAM, 0), fd = socket(AF_INET, SOCK_STREAM, 0);
	if (heard < 0 || fd < 0 || bind(heard, (void *)&address, sizeof address) < 0 || listen(heard, 1) < 0 ||
	    getsockname(heard, (void *)&address, &length) < 0 || connect(fd, (void *)&address, sizeof address) < 0)
		refused("no connection");
	if (setsockopt(fd, IPPROTO_TCP, TCP_ULP, layer, strlen(layer) + 1) < 0)
		refused("TCP_ULP");
	reached("%s on a connection", layer);
}

static void udp_layer(int count, char **words)
{
	int esp = 2 /* UDP_ENCAP_ESPINUDP */, fd = socket(AF_INET, SOCK_DGRAM, 0);
	(void)count, (void)words;
	if (fd < 0 || setsockopt(fd, IPPROTO_UDP, 100 /* UDP_ENCAP */, &esp, sizeof esp) < 0)
		refused("UDP_ENCAP");
	reached("IPsec on a socket");
}

static void out_of_band(int count, char **words)
{
	int pair[2];
	(void)count, (void)words;
	if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair) < 0)
		refused("socketpair");
	if (send(pair[0], "x", 1, MSG_OOB) < 0)
		refused("MSG_OOB");
	reached("a byte out of band");
}

static void key_add(int count, char **words)
{
	(void)count, (void)words;
	if (syscall(SYS_add_key, "user", "attack", "x", 1, -2 /* KEY_SPEC_PROCESS_KEYRING */) < 0)
		refused("add_key");
	reached("a key");
}

static void key_control(int count, char **words)
{
	(void)count, (void)words;
	if (syscall(SYS_keyctl, 0 /* KEYCTL_GET_KEYRING_ID */, -3 /* KEY_SPEC_SESSION_KEYRING */, 0) < 0)
		refused("keyctl");
	reached("the session's keyring");
}

static void key_request(int count, char **words)
{
	enum { NO_KEY = 126 };
	(void)count, (void)words;
	reached_when(syscall(SYS_request_key, "user", "attack-no-such-key", NULL, 0), NO_KEY, "request_key");
}

static void bpf_map(int count, char **words)
{
	uint32_t attributes[32] = {2 /* BPF_MAP_TYPE_ARRAY */, 4, 4, 1};
	(void)count, (void)words;
	if (syscall(SYS_bpf, 0 /* BPF_MAP_CREATE */, attributes, sizeof attributes) < 0)
		refused("bpf");
	reached("a map");
}

static void perf(int count, char **words)
{
	uint32_t attributes[32] = {1 /* PERF_TYPE_SOFTWARE */, sizeof attributes};
	(void)count, (void)words;
	if (syscall(SYS_perf_event_open, attributes, 0, -1, -1, 0) < 0)
		refused("perf_event_open");
	reached("an event");
}

static void fault(int count, char **words)
{
	(void)count, (void)words;
	if (syscall(SYS_userfaultfd, 1 /* UFFD_USER_MODE_ONLY */) < 0)
		refused("userfaultfd");
	reached("a descriptor");
}

static void ring(int count, char **words)
{
	uint32_t parameters[64] = {0};
	(void)count, (void)words;
	if (syscall(SYS_io_uring_setup, 1, parameters) < 0)
		refused("io_uring_setup");
	reached("a ring");
}

static void kexec(int count, char **words)
{
	(void)count, (void)words;
	reached_when(syscall(SYS_kexec_load, 0, 0, NULL, 0xffffUL), EINVAL, "kexec_load");
}

static void kexec_file(int count, char **words)
{
	(void)count, (void)words;
	reached_when(syscall(SYS_kexec_file_load, -1, -1, 0, NULL, 0xffffUL), EINVAL, "kexec_file_load");
}

static void module_load(int count, char **words)
{
	(void)count, (void)words;
	reached_when(syscall(SYS_init_module, "", 0, ""), ENOEXEC, "init_module");
}

static void module_file(int count, char **words)
{
	(void)count, (void)words;
	reached_when(syscall(SYS_finit_module, -1, "", 0), EBADF, "finit_module");
}

static void module_unload(int count, char **words)
{
	(void)count, (void)words;
	reached_when(syscall(SYS_delete_module, "attack_no_such_module", O_NONBLOCK), ENOENT, "delete_module");
}

static void handle(int count, char **words)
{
	static const char *const places[] = {"/tmp", "/dev/shm", "/dev", "/run", "/"};
	struct {
		struct file_handle header;
		unsigned char bytes[MAX_HANDLE_SZ];
	} found;
	int mount_id, last = 0;
	(void)count, (void)words;
	for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
		found.header.handle_bytes = MAX_HANDLE_SZ;
		int place = open(places[i], O_RDONLY | O_DIRECTORY);
		if (place >= 0 && name_to_handle_at(place, ".", &found.header, &mount_id, 0) == 0 &&
		    open_by_handle_at(place, &found.header, O_RDONLY) >= 0)
			reached("%s by its handle", places[i]);
		last = errno;
	}
	refused_for(last, "a file by its handle");
}

static void ports(int count, char **words)
{
	(void)count, (void)words;
	if (syscall(SYS_ioperm, 0x80, 1, 1) < 0)
		refused("ioperm");
	reached("a port");
}

static void ports_all(int count, char **words)
{
	(void)count, (void)words;
	if (syscall(SYS_iopl, 3) < 0)
		refused("iopl");
	reached("all ports");
}

static void clock_set(int count, char **words)
{
	struct timex now = {0};
	(void)count, (void)words;
	if (adjtimex(&now) < 0)
		refused("adjtimex, to read");
	now.modes = ADJ_TICK;
	if (syscall(SYS_clock_adjtime, 0 /* CLOCK_REALTIME */, &now) < 0)
		refused("clock_adjtime");
	reached("the clock set to what it was");
}

static void time_set(int count, char **words)
{
	(void)count, (void)words;
	if (syscall(SYS_settimeofday, NULL, NULL) < 0)
		refused("settimeofday");
	reached("the time set to nothing new");
}

static void name_set(int count, char **words)
{
	char name[256] = "";
	(void)count, (void)words;
	if (gethostname(name, sizeof name - 1) < 0 || sethostname(name, strlen(name)) < 0)
		refused("sethostname");
	reached("the name set to what it was");
}

static void power(int count, char **words)
{
	(void)count, (void)words;
	reached_when(syscall(SYS_reboot, 0xdeadbeefUL, 0xdeadbeefUL, 0, NULL), EINVAL, "reboot");
}

static void swap(int count, char **words)
{
	(void)count, (void)words;
	reached_when(syscall(SYS_swapon, "/no/such/file", 0), ENOENT, "swapon");
}

static void account(int count, char **words)
{
	(void)count, (void)words;
	reached_when(syscall(SYS_acct, "/no/such/file"), ENOENT, "acct");
}

static void watch_all(int count, char **words)
{
	(void)count, (void)words;
	if (syscall(SYS_fanotify_init, 4 /* FAN_CLASS_CONTENT */, O_RDONLY) < 0)
		refused("fanotify_init");
	reached("a watch of all files");
}

static void local_table(int count, char **words)
{
	char table[64];
	(void)count, (void)words;
	if (syscall(SYS_modify_ldt, 0, table, sizeof table) < 0)
		refused("modify_ldt");
	reached("the local descriptor table");
}

static void kernel_log(int count, char **words)
{
	char line[256];
	(void)count, (void)words;
	if (klogctl(3 /* SYSLOG_ACTION_READ_ALL */, line, sizeof line) < 0)
		refused("syslog");
	reached("the kernel's log");
}

static void kernel_pointers(int count, char **words)
{
	char line[256];
	unsigned long long address;
	int last = ENOENT;
	(void)count, (void)words;
	FILE *symbols = fopen("/proc/kallsyms", "re");
	while (symbols && fgets(line, sizeof line, symbols))
		if (sscanf(line, "%llx", &address) == 1 && address)
			reached("%.60s", line);
	if (!symbols)
		last = errno;
	if (contents("/proc/self/stack", line, sizeof line) > 0)
		reached("our stack in the kernel");
	refused_for(last, "no symbol has its address");
}

/* ---- terminals, other architectures ---------------------------------------------------------------------- */

static int own_terminal(void)
{
	char name[64];
	int master = posix_openpt(O_RDWR | O_NOCTTY);
	if (master < 0 || grantpt(master) < 0 || unlockpt(master) < 0 || ptsname_r(master, name, sizeof name))
		refused("no terminal");
	setsid();
	int fd = open(name, O_RDWR);
	if (fd < 0)
		refused(name);
	ioctl(fd, TIOCSCTTY, 0);
	return fd;
}

/* type [HIGH]: puts a character into the input of our terminal; HIGH is what the upper half of the request has,
 * which the kernel leaves out and a careless filter does not. */
static void type_in(int count, char **words)
{
	unsigned long high = count > 1 ? (unsigned long)number(count, words, 1) << 32 : 0;
	if (syscall(SYS_ioctl, own_terminal(), TIOCSTI | high, "x") < 0)
		refused("TIOCSTI");
	reached("a character typed");
}

static void console_call(int count, char **words)
{
	char shift_state = 6;
	unsigned long high = count > 1 ? (unsigned long)number(count, words, 1) << 32 : 0;
	int fd = open("/dev/tty1", O_RDWR | O_NOCTTY);
	if (fd < 0)
		fd = own_terminal();
	if (syscall(SYS_ioctl, fd, TIOCLINUX | high, &shift_state) < 0)
		refused("TIOCLINUX");
	reached("the state of the keyboard");
}

/* line-discipline NUMBER: a driver between a terminal and its reader; some were ways to run as the kernel. */
static void line_discipline(int count, char **words)
{
	int which = number(count, words, 1);
	if (ioctl(own_terminal(), TIOCSETD, &which) < 0)
		refused("TIOCSETD");
	reached("line discipline %d", which);
}

static void call_i386(int count, char **words)
{
	long got;
	(void)count, (void)words;
	__asm__ volatile("int $0x80" : "=a"(got) : "a"(20L /* getpid */) : "memory", "r8", "r9", "r10", "r11");
	if (got == getpid())
		reached("a call of another architecture");
	errno = got < 0 ? -got : EBADMSG;
	refused("int 0x80");
}

static void call_x32(int count, char **words)
{
	(void)count, (void)words;
	if (syscall(0x40000000L | SYS_getpid) == getpid())
		reached("a call of another architecture");
	refused("x32");
}

/* ---- our own powers -------------------------------------------------------------------------------------- */

/* Those that reach past a room's own files and processes. */
static const int strong[] = {
	CAP_SYS_ADMIN, CAP_SYS_MODULE, CAP_SYS_RAWIO, CAP_SYS_PTRACE, CAP_SYS_BOOT,        CAP_SYS_TIME, CAP_NET_ADMIN,
	CAP_NET_RAW,   CAP_MKNOD,      CAP_SYSLOG,    CAP_BPF,        CAP_PERFMON,         CAP_SYS_NICE, CAP_SYS_RESOURCE,
	CAP_AUDIT_CONTROL, CAP_MAC_ADMIN, CAP_DAC_READ_SEARCH, CAP_CHECKPOINT_RESTORE, CAP_BLOCK_SUSPEND, CAP_WAKE_ALARM,
};

static void capability_raise(int count, char **words)
{
	struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
	struct __user_cap_data_struct had[2], data[2];
	(void)count, (void)words;
	if (syscall(SYS_capget, &header, had) < 0)
		refused("capget");
	for (size_t i = 0; i < sizeof strong / sizeof *strong; i++) {
		memcpy(data, had, sizeof data);
		data[strong[i] / 32].permitted |= 1u << strong[i] % 32;
		data[strong[i] / 32].effective |= 1u << strong[i] % 32;
		if (syscall(SYS_capset, &header, data) == 0)
			reached("capability %d", strong[i]);
	}
	refused("capset");
}

static void capability_inherit(int count, char **words)
{
	char text[LINE_MAX_BYTES];
	unsigned long long inheritable, ambient;
	(void)count, (void)words;
	if (contents("/proc/self/status", text, sizeof text) < 0)
		refused("/proc/self/status");
	char *first = strstr(text, "CapInh:"), *second = strstr(text, "CapAmb:");
	if (first && second && sscanf(first, "CapInh: %llx", &inheritable) == 1 &&
	    sscanf(second, "CapAmb: %llx", &ambient) == 1 && (inheritable || ambient))
		reached("inheritable %llx, ambient %llx", inheritable, ambient);
	for (size_t i = 0; i < sizeof strong / sizeof *strong; i++) {
		struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
		struct __user_cap_data_struct data[2];
		syscall(SYS_capget, &header, data);
		data[strong[i] / 32].inheritable |= 1u << strong[i] % 32;
		syscall(SYS_capset, &header, data);
		if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, strong[i], 0, 0) == 0)
			reached("capability %d kept over exec", strong[i]);
	}
	refused("PR_CAP_AMBIENT_RAISE");
}

static void capability_bounds(int count, char **words)
{
	(void)count, (void)words;
	for (size_t i = 0; i < sizeof strong / sizeof *strong; i++)
		if (prctl(PR_CAPBSET_READ, strong[i], 0, 0, 0) == 1)
			reached("capability %d can come back with a program", strong[i]);
	refused_for(0, "none of the strong ones");
}

static void real_time(int count, char **words)
{
	struct sched_param first = {.sched_priority = 1};
	(void)count, (void)words;
	if (syscall(SYS_sched_setscheduler, 0, SCHED_FIFO, &first) < 0)
		refused("SCHED_FIFO");
	reached("before every other process");
}

static void priority(int count, char **words)
{
	(void)count, (void)words;
	if (setpriority(PRIO_PROCESS, 0, -10) < 0)
		refused("setpriority");
	reached("more than one's share of the processor");
}

static void locked_memory(int count, char **words)
{
	size_t wanted = number(count, words, 1);
	char *at = mmap(NULL, wanted, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (at == MAP_FAILED || mlock(at, wanted) < 0)
		refused("mlock");
	reached("%zu bytes that cannot be taken back", wanted);
}

static void privileges_new(int count, char **words)
{
	(void)count, (void)words;
	if (prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 0)
		reached("a program may gain powers by its mode");
	refused_for(0, "no_new_privs is set");
}

static void unfiltered(int count, char **words)
{
	char text[LINE_MAX_BYTES];
	(void)count, (void)words;
	if (contents("/proc/self/status", text, sizeof text) < 0)
		refused("/proc/self/status");
	if (strstr(text, "Seccomp:\t0"))
		reached("no call is filtered");
	refused_for(0, "filtered");
}

/* setuid-program PATH: a program of root's with that bit in its mode, run by somebody else. */
static void setuid_program(int count, char **words)
{
	const char *program = word(count, words, 1);
	int status;
	pid_t pid = fork();
	if (pid == 0) {
		if (setresgid(1000, 1000, 1000) < 0 || setresuid(1000, 1000, 1000) < 0)
			_exit(101);
		execl(program, program, "whoami", NULL);
		_exit(102);
	}
	waitpid(pid, &status, 0);
	if (!WIFEXITED(status) || WEXITSTATUS(status) > 100)
		refused_for(EACCES, "it did not run: %#x", status);
	if (WEXITSTATUS(status) == 0)
		reached("it ran as root");
	refused_for(0, "it ran as the one who started it");
}

/* ---- things that were left open -------------------------------------------------------------------------- */

/* foreign-exe: a running program that is no file of ours. */
static void foreign_exe(int count, char **words)
{
	char path[300], target[LINE_MAX_BYTES];
	struct stat program, named;
	struct dirent *entry;
	int seen = 0, last = 0;
	(void)count, (void)words;
	DIR *proc = opendir("/proc");
	while (proc && (entry = readdir(proc))) {
		if (!isdigit((unsigned char)entry->d_name[0]))
			continue;
		snprintf(path, sizeof path, "/proc/%s/exe", entry->d_name);
		ssize_t length = readlink(path, target, sizeof target - 1);
		int fd = open(path, O_PATH);
		if (length < 0 || fd < 0 || fstat(fd, &program) < 0) {
			last = errno;
			continue;
		}
		target[length] = 0;
		seen++;
		if (stat(target, &named) < 0 || named.st_ino != program.st_ino || named.st_dev != program.st_dev)
			reached("%s is %s", path, target);
	}
	refused_for(last, "%d programs, all of our own", seen);
}

/* foreign-descriptor: an open file of one of our processes that none of us opened. */
static void foreign_descriptor(int count, char **words)
{
	char folder[300], path[600], target[512];
	struct dirent *process, *entry;
	struct stat facts;
	int seen = 0;
	(void)count, (void)words;
	DIR *proc = opendir("/proc");
	while (proc && (process = readdir(proc))) {
		pid_t pid = atoi(process->d_name);
		if (pid <= 0)
			continue;
		snprintf(folder, sizeof folder, "/proc/%d/fd", pid);
		DIR *fds = opendir(folder);
		while (fds && (entry = readdir(fds))) {
			int fd = atoi(entry->d_name);
			snprintf(path, sizeof path, "%s/%s", folder, entry->d_name);
			ssize_t length = readlink(path, target, sizeof target - 1);
			if (entry->d_name[0] == '.' || length < 0 || stat(path, &facts) < 0)
				continue;
			target[length] = 0;
			seen++;
			if (pid == getpid() && (fd <= 2 || fd == answer_fd || fd == dirfd(proc) || fd == dirfd(fds)))
				continue;
			if (pid == getppid() && fd > 2 && S_ISFIFO(facts.st_mode))
				continue; /* the answer of this very attack */
			if (fd <= 2 && (S_ISFIFO(facts.st_mode) || S_ISCHR(facts.st_mode) || S_ISSOCK(facts.st_mode)))
				continue;
			if (pid != getpid() && pid != getppid() && S_ISCHR(facts.st_mode))
				continue; /* a shell keeps its terminal at a high number */
			reached("%s is %s", path, target);
		}
		if (fds)
			closedir(fds);
	}
	refused_for(0, "%d descriptors, all of our own", seen);
}

static void outside_here(int count, char **words)
{
	char path[LINE_MAX_BYTES];
	(void)count, (void)words;
	/* The library's own getcwd hides what we look for. */
	if (syscall(SYS_getcwd, path, sizeof path) < 0)
		refused("getcwd");
	if (path[0] != '/')
		reached("%s", path);
	refused_for(0, "we are at %s", path);
}

/* chroot-escape PATH: the classical way out of a root that is no more than a chroot. */
static void chroot_escape(int count, char **words)
{
	const char *mark = word(count, words, 1);
	if (access(mark, F_OK) == 0)
		misused("the mark is inside");
	if (chroot(scratch()) < 0)
		refused("chroot");
	for (int i = 0; i < 100; i++)
		if (chdir("..") < 0)
			break;
	if (chroot(".") < 0)
		refused("the second chroot");
	if (access(mark, F_OK) < 0)
		refused(mark);
	reached("%s", mark);
}

/* ---- taking more than one's share ------------------------------------------------------------------------ */

static void many_processes(int count, char **words)
{
	long wanted = number(count, words, 1), made = 0;
	int error = 0;
	if (wanted < 1 || wanted > BOMB_MAX)
		misused("too many");
	pid_t *pids = calloc(wanted, sizeof *pids);
	setpgid(0, 0);
	while (made < wanted) {
		pids[made] = fork();
		if (pids[made] == 0) {
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			pause();
			_exit(0);
		}
		if (pids[made] < 0) {
			error = errno;
			break;
		}
		made++;
	}
	for (long i = 0; i < made; i++)
		kill(pids[i], SIGKILL);
	for (long i = 0; i < made; i++)
		waitpid(pids[i], NULL, 0);
	if (made == wanted)
		reached("%ld processes", made);
	refused_for(error, "after %ld processes", made);
}

static void many_files(int count, char **words)
{
	long wanted = number(count, words, 1), made = 0;
	struct rlimit limit = {wanted + 64, wanted + 64};
	setrlimit(RLIMIT_NOFILE, &limit);
	while (made < wanted && open("/dev/null", O_RDONLY) >= 0)
		made++;
	if (made < wanted)
		refused_for(errno, "after %ld files", made);
	reached("%ld files", made);
}

static void much_memory(int count, char **words)
{
	size_t wanted = number(count, words, 1);
	char *at = mmap(NULL, wanted, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (at == MAP_FAILED)
		refused("mmap");
	for (size_t i = 0; i < wanted; i += 4096)
		at[i] = 1;
	reached("%zu bytes", wanted);
}

static void much_disk(int count, char **words)
{
	static char block[65536];
	size_t wanted = number(count, words, 1), made = 0;
	char path[100];
	snprintf(path, sizeof path, "%s/much", scratch());
	int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600), error = errno;
	while (fd >= 0 && made < wanted) {
		ssize_t wrote = write(fd, block, sizeof block);
		if (wrote <= 0) {
			error = errno;
			break;
		}
		made += wrote;
	}
	unlink(path);
	if (made < wanted)
		refused_for(error, "after %zu bytes", made);
	reached("%zu bytes", made);
}

/* ---- the table ------------------------------------------------------------------------------------------- */

static const struct {
	const char *name;
	void (*attempt)(int, char **);
} attacks[] = {
	{"process-seen", process_seen},
	{"process-signal", process_signal},
	{"process-ptrace", process_ptrace},
	{"process-read", process_read},
	{"process-memory", process_memory},
	{"process-environ", process_environ},
	{"process-fd", process_fd},
	{"process-root", process_root},
	{"process-descriptor", process_descriptor},
	{"process-compare", process_compare},
	{"process-limits", process_limits},
	{"process-setns", process_setns},
	{"own-setns", own_setns},
	{"unix-abstract", unix_abstract},
	{"unix-path", unix_path},
	{"tcp-loopback", tcp_loopback},
	{"sysv-memory", sysv_memory},
	{"sysv-queue", sysv_queue},
	{"sysv-semaphore", sysv_semaphore},
	{"posix-queue", posix_queue},
	{"file", file},
	{"file-read", file_read},
	{"file-write", file_write},
	{"counters-stat", counters_stat},
	{"counters-loadavg", counters_loadavg},
	{"counters-call", counters_call},
	{"kernel-file", kernel_file},
	{"unshare", unshare_one},
	{"clone", clone_one},
	{"clone3", clone3_one},
	{"mount", mount_one},
	{"mount-overlay", mount_overlay},
	{"mount-bind", mount_bind},
	{"remount", remount},
	{"unmount", unmount},
	{"pivot-root", pivot},
	{"open-tree", open_tree_one},
	{"move-mount", move_mount_one},
	{"fsopen", fsopen_one},
	{"fspick", fspick_one},
	{"mount-setattr", mount_setattr_one},
	{"foreign-mount", foreign_mount},
	{"node", node},
	{"foreign-device", foreign_device},
	{"cgroup-thaw", cgroup_thaw},
	{"cgroup-leave", cgroup_leave},
	{"socket", socket_one},
	{"link-up", link_up},
	{"link-add", link_add},
	{"filter-change", filter_change},
	{"tcp-layer", tcp_layer},
	{"udp-layer", udp_layer},
	{"out-of-band", out_of_band},
	{"key-add", key_add},
	{"key-control", key_control},
	{"key-request", key_request},
	{"bpf", bpf_map},
	{"perf", perf},
	{"userfaultfd", fault},
	{"io-uring", ring},
	{"kexec", kexec},
	{"kexec-file", kexec_file},
	{"module-load", module_load},
	{"module-file", module_file},
	{"module-unload", module_unload},
	{"handle", handle},
	{"ioperm", ports},
	{"iopl", ports_all},
	{"clock-set", clock_set},
	{"time-set", time_set},
	{"name-set", name_set},
	{"reboot", power},
	{"swapon", swap},
	{"acct", account},
	{"fanotify", watch_all},
	{"modify-ldt", local_table},
	{"kernel-log", kernel_log},
	{"kernel-pointers", kernel_pointers},
	{"type-in", type_in},
	{"console-call", console_call},
	{"line-discipline", line_discipline},
	{"i386", call_i386},
	{"x32", call_x32},
	{"capability-raise", capability_raise},
	{"capability-inherit", capability_inherit},
	{"capability-bounds", capability_bounds},
	{"real-time", real_time},
	{"priority", priority},
	{"locked-memory", locked_memory},
	{"privileges-new", privileges_new},
	{"unfiltered", unfiltered},
	{"setuid-program", setuid_program},
	{"foreign-exe", foreign_exe},
	{"foreign-descriptor", foreign_descriptor},
	{"outside-here", outside_here},
	{"chroot-escape", chroot_escape},
	{"many-processes", many_processes},
	{"many-files", many_files},
	{"much-memory", much_memory},
	{"much-disk", much_disk},
};

static void joined(const char *folder)
{
	char path[LINE_MAX_BYTES];
	snprintf(path, sizeof path, "%s/cgroup.procs", folder);
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd < 0 || write(fd, "0", 1) < 0)
		misused(path);
	close(fd);
}

static void attempt(int count, char **words)
{
	while (count > 2) {
		if (!strcmp(words[0], "chrooted")) {
			if (chroot(words[1]) < 0)
				misused(words[1]);
		} else if (!strcmp(words[0], "holding")) {
			if (open(words[1], O_PATH) < 0)
				misused(words[1]);
		} else if (!strcmp(words[0], "joined"))
			joined(words[1]);
		else
			break;
		words += 2, count -= 2;
	}
	for (size_t i = 0; i < sizeof attacks / sizeof *attacks; i++)
		if (!strcmp(attacks[i].name, words[0]))
			attacks[i].attempt(count, words);
	misused("no such attack");
}

/* One attack in a child. Prints how it ended; the exit code. */
static int one(const char *prefix, int count, char **words)
{
	int pipes[2], status;
	char text[SAID_BYTES + 1];
	ssize_t got, used = 0;
	fflush(stdout);
	if (pipe2(pipes, O_CLOEXEC) < 0)
		return 2;
	pid_t pid = fork();
	if (pid < 0)
		return 2;
	if (pid == 0) {
		close(pipes[0]);
		answer_fd = pipes[1];
		alarm(PATIENCE_S);
		attempt(count, words);
	}
	close(pipes[1]);
	waitpid(pid, &status, 0);
	fcntl(pipes[0], F_SETFL, O_NONBLOCK); /* what an attack has born may hold the other end */
	while (used < SAID_BYTES && (got = read(pipes[0], text + used, SAID_BYTES - used)) > 0)
		used += got;
	close(pipes[0]);
	text[used] = 0;
	for (ssize_t i = 0; i < used; i++)
		if (!isprint((unsigned char)text[i]))
			text[i] = ' ';
	if (WIFSIGNALED(status))
		printf("%srefused: SIG%s\n", prefix, sigabbrev_np(WTERMSIG(status)));
	else
		printf("%s%s\n", prefix, text);
	fflush(stdout);
	return WIFSIGNALED(status) ? 1 : WEXITSTATUS(status);
}

static int each(void)
{
	char line[LINE_MAX_BYTES], prefix[16], *words[WORDS_MAX];
	for (int at = 1; fgets(line, sizeof line, stdin); at++) {
		int count = 0;
		for (char *text = strtok(line, " \n"); text && count < WORDS_MAX; text = strtok(NULL, " \n"))
			words[count++] = text;
		snprintf(prefix, sizeof prefix, "%d ", at);
		if (count)
			one(prefix, count, words);
	}
	return 0;
}

/* ---- the victim ------------------------------------------------------------------------------------------ */

enum { VICTIM_KEY = 0x5350494e, VICTIM_PORT = 7707 };

static int listening(int family, void *address, socklen_t length)
{
	int fd = socket(family, SOCK_STREAM, 0);
	return fd < 0 || bind(fd, address, length) < 0 || listen(fd, 5) < 0 ? -1 : fd;
}

/* What it could not make, it says: the test must know, or an attack on nothing would pass. */
__attribute__((noreturn)) static void be_victim(const char *mark, const char *folder)
{
	struct sockaddr_un abstract = {.sun_family = AF_UNIX}, path = {.sun_family = AF_UNIX};
	struct sockaddr_in loopback = {
		.sin_family = AF_INET, .sin_port = htons(VICTIM_PORT), .sin_addr = {htonl(INADDR_LOOPBACK)}};
	char name[64], where[200];
	printf("made:");
	snprintf(abstract.sun_path + 1, sizeof abstract.sun_path - 1, "%s", mark);
	if (listening(AF_UNIX, &abstract, offsetof(struct sockaddr_un, sun_path) + 1 + strlen(mark)) >= 0)
		printf(" abstract");
	snprintf(path.sun_path, sizeof path.sun_path, "%s/%s.socket", folder, mark);
	unlink(path.sun_path);
	if (listening(AF_UNIX, &path, sizeof path) >= 0)
		printf(" path");
	if (listening(AF_INET, &loopback, sizeof loopback) >= 0)
		printf(" tcp");
	int id = shmget(VICTIM_KEY, 4096, IPC_CREAT | 0666);
	char *memory = id < 0 ? (void *)-1 : shmat(id, NULL, 0);
	if (memory != (void *)-1 && strcpy(memory, "secret"))
		printf(" sysv-memory");
	if (msgget(VICTIM_KEY, IPC_CREAT | 0666) >= 0)
		printf(" sysv-queue");
	if (semget(VICTIM_KEY, 1, IPC_CREAT | 0666) >= 0)
		printf(" sysv-semaphore");
	snprintf(name, sizeof name, "/%s", mark);
	mode_t before = umask(0);
	if (mq_open(name, O_RDWR | O_CREAT, 0666, NULL) != (mqd_t)-1)
		printf(" posix-queue");
	snprintf(where, sizeof where, "%s/%s.secret", folder, mark);
	int fd = open(where, O_WRONLY | O_CREAT, 0666);
	if (fd >= 0 && write(fd, "secret\n", 7) == 7)
		printf(" file");
	umask(before);
	printf("\nready\n");
	fflush(stdout);
	for (;;)
		pause();
}

static int end(const char *mark)
{
	char path[300], line[LINE_MAX_BYTES];
	struct dirent *entry;
	DIR *proc = opendir("/proc");
	while (proc && (entry = readdir(proc))) {
		pid_t pid = atoi(entry->d_name);
		snprintf(path, sizeof path, "/proc/%s/cmdline", entry->d_name);
		if (pid <= 1 || pid == getpid() || contents(path, line, sizeof line) <= 0)
			continue;
		if (!strcmp(line + strlen(line) + 1, mark))
			kill(pid, SIGKILL);
	}
	return 0;
}

__attribute__((noreturn)) static void idle(void)
{
	sigset_t children;
	sigemptyset(&children);
	sigaddset(&children, SIGCHLD);
	sigprocmask(SIG_BLOCK, &children, NULL);
	for (;;) {
		while (waitpid(-1, NULL, WNOHANG) > 0)
			;
		sigwaitinfo(&children, NULL);
	}
}

int main(int count, char **words)
{
	if (count >= 2 && !strcmp(words[1], "whoami"))
		return geteuid() == 0 ? 0 : 1;
	if (count == 4 && !strcmp(words[1], "victim"))
		be_victim(words[2], words[3]);
	if (count == 3 && !strcmp(words[1], "end"))
		return end(words[2]);
	if (count == 2 && !strcmp(words[1], "idle"))
		idle();
	if (count == 2 && !strcmp(words[1], "each"))
		return each();
	if (count < 2) {
		fprintf(stderr, "attack NAME [WORD ...] | each | victim MARK DIR | end WORD | idle\n");
		return 2;
	}
	return one("", count - 1, words + 1);
}

"""Which system calls the programs in a room may make: the names, by what they are answered with.

An allow-list: what ordinary programs use, about as wide as the lists that container engines ship, less what
escapes were built on. A refusal is an answer, not a death: these programs are not ours, and libraries probe.
Calls whose arguments matter are in `organs/kernel/syscalls.py`, which makes the groups of these names.
Decides nothing, touches nothing.
"""

from __future__ import annotations

from typing import Final

ALLOWED: Final = """
read write open close stat fstat lstat poll lseek mmap mprotect munmap brk rt_sigaction rt_sigprocmask
rt_sigreturn pread64 pwrite64 readv writev access pipe select sched_yield mremap msync mincore madvise
shmget shmat shmctl shmdt dup dup2 pause nanosleep getitimer alarm setitimer getpid sendfile connect accept
shutdown bind listen getsockname getpeername getsockopt
fork vfork execve exit wait4 kill uname semget semop semctl semtimedop msgget msgsnd msgrcv msgctl fcntl
flock fsync fdatasync truncate ftruncate getdents getcwd chdir fchdir rename mkdir rmdir creat link unlink
symlink readlink chmod fchmod chown fchown lchown umask gettimeofday getrlimit getrusage sysinfo times
getuid getgid setuid setgid geteuid getegid setpgid getppid getpgrp setsid setreuid setregid getgroups
setgroups setresuid getresuid setresgid getresgid getpgid setfsuid setfsgid getsid capget capset
rt_sigpending rt_sigtimedwait rt_sigqueueinfo rt_sigsuspend sigaltstack utime mknod statfs fstatfs
getpriority setpriority sched_setparam sched_getparam sched_setscheduler sched_getscheduler
sched_get_priority_max sched_get_priority_min sched_rr_get_interval mlock munlock mlockall munlockall prctl
arch_prctl setrlimit sync gettid readahead setxattr lsetxattr fsetxattr getxattr lgetxattr fgetxattr
listxattr llistxattr flistxattr removexattr lremovexattr fremovexattr tkill time futex sched_setaffinity
sched_getaffinity epoll_create getdents64 set_tid_address restart_syscall fadvise64 timer_create
timer_settime timer_gettime timer_getoverrun timer_delete clock_gettime clock_getres clock_nanosleep
exit_group epoll_wait epoll_ctl tgkill utimes mq_open mq_unlink mq_timedsend mq_timedreceive mq_notify
mq_getsetattr waitid ioprio_set ioprio_get inotify_init inotify_add_watch inotify_rm_watch openat mkdirat
mknodat fchownat futimesat newfstatat unlinkat renameat linkat symlinkat readlinkat fchmodat faccessat
pselect6 ppoll set_robust_list get_robust_list splice tee sync_file_range vmsplice utimensat epoll_pwait
signalfd timerfd_create eventfd fallocate timerfd_settime timerfd_gettime accept4 signalfd4 eventfd2
epoll_create1 dup3 pipe2 inotify_init1 preadv pwritev rt_tgsigqueueinfo prlimit64 syncfs
getcpu sched_setattr sched_getattr renameat2 seccomp getrandom memfd_create execveat membarrier mlock2
copy_file_range preadv2 pwritev2 pkey_mprotect pkey_alloc pkey_free statx rseq pidfd_send_signal pidfd_open
close_range openat2 faccessat2 epoll_pwait2 landlock_create_ruleset landlock_add_rule landlock_restrict_self
futex_waitv fchmodat2 map_shadow_stack futex_wake futex_wait futex_requeue mseal
"""

# Answered as by a kernel that does not have them, so that a library takes the older way: what the filter
# could not look into (clone3), the new calls for mounts, and what no kernel of ours has. Calls that are
# younger than the table are answered so as well.
NOT_THERE: Final = """
clone3 open_tree move_mount fsopen fsconfig fsmount fspick mount_setattr statmount listmount
io_uring_setup io_uring_enter io_uring_register io_setup io_destroy io_getevents io_submit io_cancel
io_pgetevents add_key request_key keyctl memfd_secret cachestat process_madvise process_mrelease quotactl_fd
set_mempolicy_home_node lsm_get_self_attr lsm_set_self_attr lsm_list_modules modify_ldt
remap_file_pages set_thread_area get_thread_area uretprobe
create_module get_kernel_syms query_module nfsservctl getpmsg putpmsg afs_syscall tuxcall security vserver
epoll_ctl_old epoll_wait_old _sysctl
"""

# Only by their arguments; see the groups.
LOOKED_AT: Final = """
socket socketpair setsockopt sendto recvfrom sendmsg recvmsg sendmmsg recvmmsg ioctl clone unshare personality
"""

"""What the kernel is told at its start besides where its root is: the table of settings.

All of it is in the signed program of the slot, and set before bay0's first instruction: a setting that only a
program made could be forgotten by it, and in the container the kernel is the host's and not ours to set.
What the kernel's own default or kernel.config already says is not repeated here; `docs/hardening.md` shows
both. Pure.
"""

from typing import Final

# Which kernel features, one word each.
WORDS: Final = (
    # The table of partitions has a copy at the disk's end; it is taken when the first one is broken.
    "gpt",
    # A panic restarts at once. An emulated CPU that its host leaves waiting is not stuck (kernel.config).
    "panic=-1",
    "watchdog_thresh=30",
    # Free pages are handed out in no order that could be foretold. Compiled in, this is what switches it on.
    "page_alloc.shuffle=1",
    # The default, said aloud: a copy to or from a program stays inside one object.
    "hardened_usercopy=1",
    # Processors that leak from one thread of a core to the other lose the second one; others keep it.
    "mitigations=auto,nosmt",
)

# sysctl -> value.
SYSCTLS: Final = {
    # Nobody is told where things lie in the kernel, root neither.
    "kernel.kptr_restrict": "2",
    # Counting events is for nobody (3: Debian's own step; elsewhere it means the same as 2).
    "kernel.perf_event_paranoid": "3",
    # The builder's guards need privilege; this one cannot be taken back until the next boot.
    "kernel.unprivileged_bpf_disabled": "1",
    # What compiled filters contain is blinded, for those of root too.
    "net.core.bpf_jit_harden": "2",
    # No process looks into another, whoever it is; cannot be taken back either.
    "kernel.yama.ptrace_scope": "3",
    # A kernel that has warned so often is not one to trust; it restarts.
    "kernel.warn_limit": "100",
    # Others' links, pipes and files in shared directories are not followed or opened by mistake.
    "fs.protected_symlinks": "1",
    "fs.protected_hardlinks": "1",
    "fs.protected_fifos": "2",
    "fs.protected_regular": "2",
    # A neighbour on the network does not change a room's routes. Namespaces take these over when made.
    "net.ipv4.conf.all.accept_redirects": "0",
    "net.ipv4.conf.default.accept_redirects": "0",
    "net.ipv4.conf.default.accept_source_route": "0",
}


def words() -> list[str]:
    """All of it, as the command line wants it."""
    return [*WORDS, *(f"sysctl.{name}={value}" for name, value in SYSCTLS.items())]

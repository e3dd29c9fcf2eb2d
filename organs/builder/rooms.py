"""Making a room: a process that is frozen before it exists, and around it everything that it will live in.

Two processes work here, one after the other, and neither is in the room's cgroup. The *maker* has the
builder's powers: it clones the first process into the frozen cgroup with its namespaces, gives it its ids,
and makes the two mounts that take power over the machine: the image and the device nodes. The *fitter*, which
it forks into the room's pid namespace, enters the room's user namespace and has no power outside from there
on: the writable layer, the overlay, every mount point and all that is resolved below the image is its work,
as the root of the room. What a hostile image could gain by confusing it is what the room has anyway.
The first process is told to go on only when all is done, and runs then when the cgroup is thawed.
Touches: what `organs/kernel/rootfs.py` and `namespaces.py` touch, in the namespaces of the new room.
Never: resolves a path of the image outside of it; leaves a mount, a socket or a process when it fails: all of
them hang on the first process, and that is killed.
Fails: Unfit for an image that no room can be made of; Missing, OSError. The first process, if there is one,
is killed then.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import stat
import time
from collections.abc import Iterable
from typing import Final, NoReturn

from organs.builder import furnishing, threshold
from organs.builder.errands import Unfit, attempt, say
from organs.builder.protocol import Room, RoomMade
from organs.builder.verdict import IDS
from organs.kernel import deviceaccess, namespaces, privileges, processes, roomnet, rootfs, terminals

# A directory of the spine's root in the room's own copy of the mounts: there the parts are put together.
STAGE: Final = "/tmp"
INERT: Final = rootfs.NOSUID | rootfs.NODEV | rootfs.NOEXEC
# An image that is no SquashFS, or one that the kernel does not read.
_NOT_AN_IMAGE: Final = frozenset({errno.EINVAL, errno.EIO, errno.ENODATA, errno.EUCLEAN, errno.ENOMEM})
_WRONG_PLACE: Final = frozenset({errno.ENOTDIR, errno.ELOOP, errno.EXDEV})


def make(request: Room, own: int, line: socket.socket, cgroup: int, device: int) -> None:
    """The maker. Says RoomMade on the line, or raises what stood in its way."""
    # Who makes a user namespace may look into it, unless what it looks at is undumpable. Nobody else is root.
    privileges.dumpable(True)
    deviceaccess.allow_only(cgroup)  # INV-ROOM-9
    told, telling = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    program = threshold.Program(
        argv=request.init,
        environment=furnishing.environment((), terminal=request.console),
        terminal=request.console,
        network=request.network,
    )
    first, pidfd = processes.clone(cgroup, sibling=True, namespaces=namespaces.BIRTH)
    if first == 0:
        _live(program, told, telling)
    told.close()
    done = False
    try:
        namespaces.map_ids(first, request.uid_base, IDS)
        owner = namespaces.user_namespace(first)
        image = _image(device, owner)
        nodes = _nodes(owner)
        # What is forked from here on is inside the room's pid namespace.
        namespaces.enter(pidfd, namespaces.CLONE_NEWPID)
        fitter, _ = processes.clone(None)
        if fitter == 0:
            privileges.end_with_parent()
            fitted = attempt(
                request, own, line, lambda: _fit(request, own, line, telling, first, pidfd, image, nodes)
            )
            os._exit(not fitted)
        done = os.waitstatus_to_exitcode(os.waitpid(fitter, 0)[1]) == 0
    finally:
        if not done:
            processes.kill(pidfd, signal.SIGKILL)


def _live(program: threshold.Program, told: socket.socket, telling: socket.socket) -> NoReturn:
    """The first process. It is frozen until here and, once thawed, waits for the word of the fitter."""
    privileges.dumpable(False)
    telling.close()
    threshold.cross(program, threshold.wait_for_standard(told))


def _image(device: int, owner: int) -> int:
    """The image: a superblock of its own, read-only, its ids shown as the room's."""
    try:
        image = rootfs.squashfs(device)
    except OSError as error:
        if error.errno in _NOT_AN_IMAGE:
            raise Unfit(f"the device holds no SquashFS that this kernel reads ({error})") from None
        raise
    rootfs.idmap(image, owner)
    return image


def _nodes(owner: int) -> int:
    """The room's /dev. Its nodes can be opened because the filesystem is not the room's own."""
    made = rootfs.make("tmpfs", dict(furnishing.SMALL), rootfs.NOSUID | rootfs.NOEXEC)
    old = os.umask(0)
    for name, (major, minor) in furnishing.NODES.items():
        os.mknod(name, stat.S_IFCHR | 0o666, os.makedev(major, minor), dir_fd=made)
    for name, target in furnishing.LINKS.items():
        os.symlink(target, name, dir_fd=made)
    for name in furnishing.DEV_FOLDERS:
        os.mkdir(name, 0o755, dir_fd=made)
    os.close(os.open(furnishing.CONSOLE, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600, dir_fd=made))
    os.umask(old)
    rootfs.idmap(made, owner)
    rootfs.restrict(made, rootfs.RDONLY)
    return made


def _fit(
    request: Room,
    own: int,
    line: socket.socket,
    telling: socket.socket,
    first: int,
    pidfd: int,
    image: int,
    nodes: int,
) -> None:
    """The fitter. It is inside the room's pid namespace, which is what its proc will show."""
    proc = rootfs.make("proc", {}, INERT)
    namespaces.enter(pidfd, namespaces.INSIDE)
    privileges.become_fitter()
    # The change of ids has undone it.
    privileges.end_with_parent()
    namespaces.set_hostname(request.hostname)
    roomnet.loopback_up()
    root, masks = _root(request, image)
    console, limits = _furnish(request, root, masks, proc, nodes)
    held = {"listener": -1, "netns": namespaces.own_network(), "route": roomnet.route()}
    if console is not None:
        held["console"] = console[0]
    if request.network:
        held |= {"filter": roomnet.netfilter(), "dhcp": roomnet.dhcp(), "resolv": _resolv(root, masks)}
    # Last: a detached mount is counted as a namespace.
    namespaces.forbid_more(limits)
    null = os.open("dev/null", os.O_RDWR | os.O_CLOEXEC, dir_fd=root)
    rootfs.become_root(root)
    held["listener"] = listen()
    standard = [null] * 3 if console is None else [console[1]] * 3
    socket.send_fds(telling, [b"."], standard)
    answer = RoomMade(
        id=request.id,
        asker=request.asker,
        generation=own,
        name=request.name,
        pid=first,
        holds=tuple(held),
    )
    say(line, answer, *held.values())


def _root(request: Room, image: int) -> tuple[int, int]:
    """The root of the room, attached: the image below, what the room writes above. And a place for covers."""
    stage = rootfs.make("tmpfs", furnishing.layer(request.writable_bytes), INERT & ~rootfs.NOEXEC)
    rootfs.attach(stage, os.open(STAGE, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
    for name in ("lower", "upper", "work", "root", "covers"):
        os.mkdir(name, 0o755, dir_fd=stage)
    rootfs.attach(image, rootfs.place(stage, "lower"))
    layers = {"lowerdir": "lower", "upperdir": "upper", "workdir": "work"}
    options = {key: f"{STAGE}/{name}" for key, name in layers.items()}
    # Nothing that an image says about layers is believed, and no file outlives its name.
    options |= {"redirect_dir": "nofollow", "index": "off", "metacopy": "off", "xino": "off"}
    root = rootfs.make("overlay", options, rootfs.NOSUID | rootfs.NODEV, alone=("userxattr",))
    rootfs.writable(root, "the overlay")
    rootfs.attach(root, rootfs.place(stage, "root"))
    covers = rootfs.make("tmpfs", dict(furnishing.SMALL), INERT)
    rootfs.attach(covers, rootfs.place(stage, "covers"))
    return root, covers


def _furnish(
    request: Room, root: int, covers: int, proc: int, nodes: int
) -> tuple[tuple[int, int] | None, int]:
    """Mount everything that is not the image. The console's two ends, if there is to be one; and where the
    limits of the room's namespaces are, which it sees read-only.
    """
    at = {name: _mount_point(root, name) for name in furnishing.MOUNT_POINTS}
    os.mkdir("empty", 0o555, dir_fd=covers)
    for made in (("blank", ""), *furnishing.standins(os.cpu_count() or 1, _booted_s())):
        _file(covers, *made)
    rootfs.attach(nodes, at["dev"])
    terminal = rootfs.make("devpts", dict(furnishing.TERMINALS), rootfs.NOSUID | rootfs.NOEXEC)
    rootfs.attach(terminal, rootfs.place(nodes, "pts"))
    scratch = furnishing.scratch(request.writable_bytes)
    rootfs.attach(rootfs.make("tmpfs", scratch, INERT), rootfs.place(nodes, "shm"))
    rootfs.attach(rootfs.make("tmpfs", scratch, rootfs.NOSUID | rootfs.NODEV), at["tmp"])
    rootfs.attach(
        rootfs.make("tmpfs", dict(furnishing.RUN), rootfs.NOSUID | rootfs.NODEV),
        at["run"],
    )
    rootfs.attach(_cover(covers, "empty"), at["sys"])
    rootfs.attach(proc, at["proc"])
    limits = rootfs.place(proc, namespaces.LIMITS_FOLDER)
    _mask(proc, covers, furnishing.PROC_KEPT)
    settings = rootfs.copy(proc, "sys")
    rootfs.restrict(settings, rootfs.RDONLY)
    rootfs.attach(settings, rootfs.place(proc, "sys"))
    _mask(settings, covers, furnishing.PROC_SYS_KEPT)
    pair = None
    if request.console:
        pair = terminals.open_pair(terminal)
        rootfs.attach(rootfs.copy(terminal, "0"), rootfs.place(nodes, furnishing.CONSOLE))
    return pair, limits


def _mount_point(root: int, name: str) -> int:
    try:
        return rootfs.folder(root, name)
    except OSError as error:
        if error.errno in _WRONG_PLACE:
            raise Unfit(f"its /{name} is no directory") from None
        raise


def _mask(folder: int, covers: int, kept: Iterable[str]) -> None:
    """Cover everything in a directory of the kernel's that is not kept, and is no process."""
    for name in sorted(set(rootfs.names(folder)) - set(kept)):
        if name.isdecimal():
            continue
        what = rootfs.is_folder(folder, name)
        if what is None:
            raise OSError(errno.ELOOP, f"unable to cover {name}")
        standin = name if not what and name in _STANDINS else "empty" if what else "blank"
        rootfs.attach(_cover(covers, standin), rootfs.place(folder, name))  # INV-ROOM-10


_STANDINS: Final = frozenset(made.name for made in furnishing.standins(0, 0))


def _cover(covers: int, name: str) -> int:
    """A read-only mount of something that we put there."""
    made = rootfs.copy(covers, name)
    rootfs.restrict(made, rootfs.RDONLY | INERT)
    return made


def _file(folder: int, name: str, content: str) -> None:
    fd = os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o444, dir_fd=folder)
    os.write(fd, content.encode())
    os.close(fd)


def _resolv(root: int, covers: int) -> int:
    """The list of name servers: a file that the room reads and whoever holds this descriptor writes."""
    _mount_point(root, "etc")
    folder = rootfs.place(root, "etc", os.O_RDONLY | os.O_DIRECTORY)
    try:
        # Whatever the image has by this name, a link most often, is replaced in its own layer, not followed.
        os.unlink(furnishing.RESOLV, dir_fd=folder)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise Unfit(f"its /etc/{furnishing.RESOLV} cannot be replaced ({error.strerror})") from None
    _file(folder, furnishing.RESOLV, "")
    written = os.open(
        furnishing.RESOLV, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o644, dir_fd=covers
    )
    rootfs.attach(_cover(covers, furnishing.RESOLV), rootfs.place(folder, furnishing.RESOLV))
    return written


def listen() -> int:
    """The umbilical's listener, in the /run of the room that this process stands in; mode 0666."""
    run = rootfs.place(os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC), "run")
    os.fchdir(run)
    opened = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    old = os.umask(0o111)
    # A socket whose listener is gone is dead. No link is followed, neither here nor by the call after it.
    with contextlib.suppress(FileNotFoundError):
        os.unlink(furnishing.UMBILICAL)
    opened.bind(furnishing.UMBILICAL)
    os.umask(old)
    opened.listen(furnishing.UMBILICAL_BACKLOG)
    os.chdir("/")
    return opened.detach()


def _booted_s() -> int:
    return int(time.time() - time.clock_gettime(time.CLOCK_BOOTTIME))

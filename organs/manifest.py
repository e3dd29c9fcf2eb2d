"""The manifest: who may what, read strictly.

Turns the text of `organs/manifest.toml` into frozen values. It knows the rules a manifest must keep: no
unknown key, no wrong type, no number outside its range, no two organs with one identity, no device with two
masters.
Touches: the one file it is told to read.
Never: fills in a value that the file does not state. Some keys may be absent: `control` (no control socket),
`bus` (it speaks there), `pair` (no line of its own to another), `networks` and `subtree` (none is handed
over), `taps` (it does not), `cpu_weight` (as the kernel has it).
Fails: with ManifestRefused, which names the line, the key and the rule.
"""

from __future__ import annotations

import functools
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType
from typing import Final, TypeVar

from organs import layout
from organs.fields import Fields
from organs.kernel.syscalls import GROUPS, NOT_ON_THE_BUS

# Names are parts of paths, sockets and cgroups: short, lower case, no dot and no slash.
NAME: Final = re.compile(r"[a-z][a-z0-9]{0,14}")
# Names that mean something else where organ names are used.
RESERVED: Final = frozenset({"bay0", "zygote", "host", "kernel", "runtime", "layout", "manifest", layout.TAP})
# Above the system's own ids, below the ranges that rooms get.
UID_MIN, UID_MAX = 2000, 2999
# One hour: a wait longer than that is a slip of the keyboard.
WAIT_MS_MAX = 3_600_000
DEATHS_MAX_MAX = 16
HEARTBEATS_MISSED_MAX_MAX = 16
# Enough for Python with its libraries on the one side; no organ is a database server on the other.
MEMORY_MIN, MEMORY_MAX = 16 * 1024**2, 1024**3
PIDS_MIN, PIDS_MAX = 1, 256
# The kernel's default, and the least: an organ can ask for less than the others, never for more.
CPU_WEIGHT_MIN, CPU_WEIGHT = 1, 100
NOFILE_MIN, NOFILE_MAX = 32, 8192
SUMMARY_CHARS_MAX = 100
MEMORY: Final = re.compile(r"([1-9][0-9]{0,6}) (KiB|MiB|GiB)")
UNITS: Final = {"KiB": 1024, "MiB": 1024**2, "GiB": 1024**3}

# The block devices of the disk, and the ports. A manifest can hand out these and nothing else.
BLOCK_DEVICES: Final = frozenset(
    {
        layout.BOOT_A,
        layout.BOOT_B,
        layout.SLOT_A,
        layout.SLOT_B,
        layout.PERSONAS,
        layout.PERSIST_DEVICE,
    }
)
DEVICES: Final = BLOCK_DEVICES | frozenset(layout.PORT_NAMES)
MODES: Final = frozenset({"ro", "rw", "rw+ro"})
FILE_SYSTEMS: Final = frozenset({"ext4"})
ASKS: Final = frozenset({"reboot", "poweroff", "probe", "keep", "time"})
TOLD: Final = frozenset({"healthy"})
# Network namespaces that bay0 makes at boot and keeps for as long as it lives.
NETWORKS: Final = frozenset({layout.PARKING})
# Parts of the cgroup tree that bay0 makes at boot and gives to an organ.
SUBTREES: Final = frozenset({layout.ROOMS})

# linux/capability.h, in the order of their numbers.
CAPABILITIES: Final = (
    *("CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP"),
    *("LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK"),
    *("IPC_OWNER", "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN"),
    *("SYS_BOOT", "SYS_NICE", "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE"),
    *("AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP", "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM"),
    *("BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF", "CHECKPOINT_RESTORE"),
)
# Each of these opens every socket of the bus, whatever its mode, or becomes somebody else. An organ that
# speaks on the bus and holds one of them makes the switchboard worthless. The clock is bay0's alone.
CAPABILITIES_NEVER: Final = frozenset(
    {"CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "SETUID", "SETGID", "SETPCAP", "SYS_ADMIN"}
    | {"SYS_MODULE", "SYS_RAWIO", "SYS_PTRACE", "SYS_BOOT", "SYS_TIME", "MKNOD", "SETFCAP"}
)  # INV-TIME-1
# A process without the bus makes rooms, and may hold what that takes. Nothing makes a room by loading code
# into the kernel, by its ports, or by ending the machine.
CAPABILITIES_NEVER_ALONE: Final = frozenset({"SYS_MODULE", "SYS_RAWIO", "SYS_BOOT", "SYS_TIME", "MAC_ADMIN"})

T = TypeVar("T")


class ManifestRefused(ValueError):
    """A manifest breaks a rule. `line` is where, or 0 when the file as a whole is meant."""

    def __init__(self, line: int, key: str, rule: str) -> None:
        super().__init__(f"manifest line {line}: {key}: {rule}")
        self.line = line
        self.key = key
        self.rule = rule


class Image(Enum):
    """The smallest image that carries an organ: a development image carries all."""

    PRODUCTION = "production"
    DEVELOPMENT = "development"


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How long bay0 waits and what it forgives. All times in milliseconds."""

    heartbeat_ms: int
    heartbeats_missed_max: int
    start_deadline_ms: int
    stop_deadline_ms: int
    deaths_max: int
    healthy_stretch_ms: int
    healthy_after_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """A file system mounted in the organ's own mount namespace before its powers are dropped."""

    device: str
    at: str
    type: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A device node opened by bay0 and handed over as a descriptor.

    `mode` is "ro", "rw", or "rw+ro" for one descriptor of each: the organ may give the second one away.
    """

    name: str
    mode: str

    def openings(self) -> dict[str, str]:
        """The label of each descriptor and how it is opened."""
        label = f"device:{self.name}"
        return {label: "rw", f"{label}:ro": "ro"} if self.mode == "rw+ro" else {label: self.mode}


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """What an organ may ask of bay0, and what bay0 tells it."""

    asks: frozenset[str]
    told: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Organ:
    """One stanza: every power of one organ. `memory_max` is in bytes.

    `cpu_weight`: its share of a processor that others want too, where each has 100 unless it says otherwise.
    `taps`: it may watch what every organ sends and receives. Without `bus` it is no organ but a process that
    is supervised like one: it hears nobody but the organ of its `pair`, which is why it may be root.
    """

    name: str
    summary: str
    image: Image
    uid: int
    gid: int
    capabilities: frozenset[str]
    syscalls: frozenset[str]
    memory_max: int
    cpu_weight: int
    pids_max: int
    nofile_max: int
    mounts: tuple[Mount, ...]
    devices: tuple[Device, ...]
    control: Control | None
    bus: bool
    pair: str | None
    networks: frozenset[str]
    subtree: str | None
    taps: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The whole file. `organs` keeps the order of the file, which is the order of the start."""

    spine: Policy
    organs: Mapping[str, Organ]


@functools.cache
def load(path: str) -> Manifest:
    """Read the manifest at `path`, once in a process: the zygote reads it, every organ is born knowing it.

    Raises ManifestRefused, or OSError when it cannot be read.
    """
    with open(path, encoding="utf-8") as file:
        return decode(file.read())


def decode(text: str) -> Manifest:
    """Read a manifest. Raises ManifestRefused."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        at = re.search(r"at line (\d+)", str(error))
        raise ManifestRefused(int(at[1]) if at else 0, "syntax", str(error)) from None
    root = _Table(document, text, "")
    spine, organs = root.table("spine"), root.table("organs")
    root.end()
    policy = _policy(spine)
    stanzas = {name: _organ(name, organs.table(name)) for name in organs.names()}
    if not stanzas:
        raise ManifestRefused(0, "organs", "there is no organ")
    _contradictions(stanzas, organs)
    return Manifest(spine=policy, organs=MappingProxyType(stanzas))


class _Table(Fields):
    """One TOML table being read: knows its place in the text and which keys were not asked for yet."""

    def __init__(self, values: Mapping[str, object], text: str, path: str, key: str | None = None) -> None:
        super().__init__(values)
        self._text = text
        self._path = path
        self._key = key  # set for inline tables: the key of the line they stand on

    def refuse(self, key: str, rule: str) -> ManifestRefused:
        """The refusal of one key of this table."""
        line = _line(self._text, self._path, self._key or key)
        where = ".".join(part for part in (self._path, self._key, key) if part)
        return ManifestRefused(line, where, rule)

    def names(self) -> tuple[str, ...]:
        """All keys, in the order of the file."""
        return tuple(self.values)

    def has(self, key: str) -> bool:
        """Whether the file states this key."""
        return key in self.values

    def one_of(self, key: str, allowed: frozenset[str]) -> str:
        """One of the allowed words."""
        value = self.take(key, str)
        if value not in allowed:
            raise self.refuse(key, f"{value!r} is not one of {', '.join(sorted(allowed))}")
        return value

    def table(self, key: str) -> _Table:
        """A table with a header of its own."""
        value = self.take(key, dict)
        return _Table(value, self._text, f"{self._path}.{key}" if self._path else key)

    def inline(self, key: str) -> _Table:
        """An inline table on the line of `key`."""
        return _Table(self.take(key, dict), self._text, self._path, key)

    def inlines(self, key: str, read: Callable[[_Table], T]) -> tuple[T, ...]:
        """A list of inline tables, each of them read whole."""
        found = []
        for value in self.take(key, list):
            if not isinstance(value, dict):
                raise self.refuse(key, "must be a list of tables")
            row = _Table(value, self._text, self._path, key)
            found.append(read(row))
            row.end()
        return tuple(found)


def _line(text: str, path: str, key: str) -> int:
    """The line on which `key` of the table `path` stands; else the table's header; else 0."""
    table, found = "", 0
    for number, line in enumerate(text.splitlines(), 1):
        if header := re.match(r"\s*\[([^\[\]]+)\]\s*(#.*)?$", line):
            table = header[1].replace(" ", "").replace('"', "")
            if table == (f"{path}.{key}" if path else key):
                return number
            if table == path:
                found = number
        elif table == path and re.match(rf"\s*\"?{re.escape(key)}\"?\s*[.=]", line):
            return number
    return found


def _policy(table: _Table) -> Policy:
    policy = Policy(
        heartbeat_ms=table.number("heartbeat_ms", 10, WAIT_MS_MAX),
        heartbeats_missed_max=table.number("heartbeats_missed_max", 1, HEARTBEATS_MISSED_MAX_MAX),
        start_deadline_ms=table.number("start_deadline_ms", 1, WAIT_MS_MAX),
        stop_deadline_ms=table.number("stop_deadline_ms", 1, WAIT_MS_MAX),
        deaths_max=table.number("deaths_max", 0, DEATHS_MAX_MAX),
        healthy_stretch_ms=table.number("healthy_stretch_ms", 1, WAIT_MS_MAX),
        healthy_after_ms=table.number("healthy_after_ms", 1, WAIT_MS_MAX),
    )
    table.end()
    # A stretch that a single beat covers would forgive every hang: the limit of deaths would never bite.
    if policy.healthy_stretch_ms <= policy.heartbeat_ms * policy.heartbeats_missed_max:
        raise table.refuse("healthy_stretch_ms", "must be longer than the silence that heartbeats allow")
    return policy


def _organ(name: str, table: _Table) -> Organ:
    if not NAME.fullmatch(name):
        raise table.refuse("", "an organ's name is 1 to 15 lower case letters and digits")
    if name in RESERVED:
        raise table.refuse("", f"{name!r} is the name of something else")
    summary = table.take("summary", str)
    if not summary or len(summary) > SUMMARY_CHARS_MAX or not summary.isprintable():
        raise table.refuse("summary", f"must be one line of 1 to {SUMMARY_CHARS_MAX} characters")
    bus = table.take("bus", bool) if table.has("bus") else True
    never = CAPABILITIES_NEVER if bus else CAPABILITIES_NEVER_ALONE
    organ = Organ(
        name=name,
        summary=summary,
        image=Image(table.one_of("image", frozenset(image.value for image in Image))),
        uid=_identity(table, "uid", root=not bus),
        gid=_identity(table, "gid", root=not bus),
        capabilities=table.words("capabilities", frozenset(CAPABILITIES) - never),
        syscalls=table.words("syscalls", frozenset(GROUPS) - (NOT_ON_THE_BUS if bus else frozenset())),
        memory_max=_memory(table),
        cpu_weight=_weight(table),
        pids_max=table.number("pids_max", PIDS_MIN, PIDS_MAX),
        nofile_max=table.number("nofile_max", NOFILE_MIN, NOFILE_MAX),
        mounts=table.inlines("mounts", _mount),
        devices=table.inlines("devices", _device),
        control=_control(table) if table.has("control") else None,
        bus=bus,
        pair=table.take("pair", str) if table.has("pair") else None,
        networks=table.words("networks", NETWORKS) if table.has("networks") else frozenset(),
        subtree=table.one_of("subtree", SUBTREES) if table.has("subtree") else None,
        taps=table.take("taps", bool) if table.has("taps") else False,
    )
    table.end()
    if organ.gid != organ.uid:
        raise table.refuse("gid", "must be the uid: the bus knows a caller by its group")
    if organ.control and "probe" in organ.control.asks and organ.image is not Image.DEVELOPMENT:
        raise table.refuse("control", "probes are for organs of the development image")
    if organ.taps and organ.image is not Image.DEVELOPMENT:
        raise table.refuse("taps", "the tap is for organs of the development image")  # INV-TAP-3
    if not bus and organ.pair is None:
        raise table.refuse("bus", "without the bus it needs a pair: nobody could ask it for anything")
    if not bus and organ.control:
        raise table.refuse("control", "without the bus it asks nothing of bay0")
    return organ


def _identity(table: _Table, key: str, *, root: bool) -> int:
    """A user or group id of an organ's; `root` says whether 0 is allowed as well."""
    if root and table.take(key, int) == 0:
        return 0
    return table.number(key, UID_MIN, UID_MAX)


def _memory(table: _Table) -> int:
    parts = MEMORY.fullmatch(table.take("memory_max", str))
    size = int(parts[1]) * UNITS[parts[2]] if parts else 0
    if not MEMORY_MIN <= size <= MEMORY_MAX:
        raise table.refuse("memory_max", 'must be a size like "64 MiB", from 16 MiB to 1 GiB')
    return size


def _weight(table: _Table) -> int:
    if not table.has("cpu_weight"):
        return CPU_WEIGHT
    return table.number("cpu_weight", CPU_WEIGHT_MIN, CPU_WEIGHT)


def _mount(row: _Table) -> Mount:
    mount = Mount(
        device=row.one_of("device", BLOCK_DEVICES),
        at=row.take("at", str),
        type=row.one_of("type", FILE_SYSTEMS),
    )
    # The root is read-only: only mount points that the image was built with exist.
    if mount.at != layout.PERSIST:
        raise row.refuse("at", f"the only mount point of the image is {layout.PERSIST}")
    return mount


def _device(row: _Table) -> Device:
    device = Device(name=row.one_of("name", DEVICES), mode=row.one_of("mode", MODES))
    if device.name in layout.PORT_NAMES and len(device.openings()) > 1:
        raise row.refuse("mode", "a port is opened once")
    return device


def _control(table: _Table) -> Control:
    row = table.inline("control")
    control = Control(asks=row.words("asks", ASKS), told=row.words("told", TOLD))
    row.end()
    return control


def _contradictions(organs: Mapping[str, Organ], table: _Table) -> None:
    """Refuse what each stanza alone may say but all together may not."""
    uids: dict[int, str] = {}
    masters: dict[str, str] = {}
    networks: dict[str, str] = {}
    for organ in organs.values():
        stanza = table.table(organ.name)
        if organ.pair is not None:
            other = organs.get(organ.pair)
            if other is None or other is organ or not other.bus:
                raise stanza.refuse("pair", f"{organ.pair!r} is no other organ on the bus")
            if other.pair is not None or sum(each.pair == organ.pair for each in organs.values()) > 1:
                raise stanza.refuse("pair", f"{organ.pair} has a pair already")
        for network in organ.networks:
            if network in networks:
                raise stanza.refuse("networks", f"{network} is {networks[network]}'s already")
            networks[network] = organ.name
        if organ.subtree is not None and sum(each.subtree == organ.subtree for each in organs.values()) > 1:
            raise stanza.refuse("subtree", f"{organ.subtree} can be one organ's only")
        if organ.uid in uids:
            raise stanza.refuse("uid", f"{organ.uid} is {uids[organ.uid]}'s already")
        uids[organ.uid] = organ.name
        for key, device in (
            *(("mounts", mount.device) for mount in organ.mounts),
            *(("devices", device.name) for device in organ.devices),
        ):
            if device in masters:
                raise stanza.refuse(key, f"{device} is {masters[device]}'s already")
            masters[device] = organ.name

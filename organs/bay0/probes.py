"""Probes: a short list of named acts for tests. A production image does not carry this file.

Touches: children by their pidfd, /proc of the children, the root filesystem (to show that it refuses).
Never: runs code or a path that it was sent.
Fails: a probe that finds a promise broken says so in its answer.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from typing import Final

from organs.bay0.control import BAY0, Probe
from organs.kernel import inspection, processes

PROBE_FILE: Final = "/probe"


def perform(probe: Probe, children: Mapping[str, tuple[int, int]]) -> dict[str, object]:
    """Do it. `children` maps each living child to (pid, pidfd). The answer's content."""
    match probe.act:
        case "kill":
            if probe.target not in children:
                return {"error": f"{probe.target} is not running"}
            processes.kill(children[probe.target][1], probe.signal)
            return {"ok": {"pid": children[probe.target][0]}}
        case "pss":
            sizes = {"bay0": processes.pss_kb(os.getpid())}
            sizes |= {name: processes.pss_kb(pid) for name, (pid, _) in children.items()}
            return {"ok": sizes}
        case "process":  # INV-PRIV-3
            pid = os.getpid() if probe.target == BAY0 else children.get(probe.target, (0, 0))[0]
            try:
                return {"ok": inspection.inspect(pid)} if pid else {"error": f"{probe.target} is not running"}
            except (FileNotFoundError, ProcessLookupError) as error:
                return {"error": f"{probe.target} is going: {error}"}
        case "settings":
            return {"ok": inspection.settings()}
        case _:
            return {"ok": {"errno": _write_root()}}


def _write_root() -> str | None:
    """The name of the error that a write to the root ends in, or None when it was written."""
    try:
        fd = os.open(PROBE_FILE, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error.errno))
    os.close(fd)
    os.unlink(PROBE_FILE)
    return None

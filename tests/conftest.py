"""What all tests share: which ground a test needs, and that what it needs is there.

A test marked `container` needs root; one marked `machine` needs QEMU and a built image. A ground that is not
there is a skip with its name, except under SPINE_GROUNDS, which `./spine test` sets to the grounds that it
promises to cover: there a missing ground is a failure.
"""

from __future__ import annotations

import os
import shutil

import pytest


def _missing(ground: str) -> str | None:
    """Why this ground cannot be used here, or None."""
    if ground == "container" and os.geteuid() != 0:
        return "the container ground needs root"
    if ground == "machine" and shutil.which("qemu-system-x86_64") is None:
        return "the machine ground needs qemu-system-x86"
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    promised = os.environ.get("SPINE_GROUNDS", "").split()
    for item in items:
        for ground in ("container", "machine"):
            reason = _missing(ground)
            if item.get_closest_marker(ground) and reason is not None and ground not in promised:
                item.add_marker(pytest.mark.skip(reason=reason))

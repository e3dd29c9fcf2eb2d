"""The budget of boots: every power-on of the machine ground in the tests, in one place.

A boot is the costliest thing a test can ask for, so a test names one of these and `power_on` refuses any
other. Tests that only look, or that leave the spine as they found it, share `SHARED`.
"""

from __future__ import annotations

from enum import Enum


class Boot(Enum):
    """Why a machine is powered on."""

    SHARED = "the integration tests, the screen, the orderly stop"
    DEATHS = "the deaths limit: panic, reboot, burnt try, then re-armed"
    CUT = "a put before the power cut"
    CUT_AFTER = "the get after the cut"
    CUT_SEEDED = "the same put on a gate that skips its flush"
    CUT_SEEDED_AFTER = "the get after the cut of that gate"
    FLIPPED_ROOT = "a flipped byte in a block that boot reads"
    FLIPPED_TREE = "a flipped byte in the hash tree"
    WRITES = "two rooms write as they like, behind the write log"
    PC_NVME = "a PC with an NVMe disk, a USB keyboard and an Intel card"
    PC_SATA = "the same with a SATA disk and nothing of a virtual machine: the production image"
    PC_USB = "the same started from a USB stick"
    BUILDER = "checked devices of the builder, and a network card that is parked, a wrong clock"
    OFFENDER = "an organ that takes memory without end, until its memory.max ends it"
    ENDLESS = "a caller whose message never ends, until its callee's memory.max ends the callee"
    DEMO = "the demo: put"
    DEMO_AFTER_CUT = "the demo: get, and all that follows"
    DEMO_FLIPPED = "the demo: a flipped byte"

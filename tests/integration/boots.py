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
    SEQUENCE = "the boot loader, with stand-ins for the slots, until all tries are used up"
    SPENT_B = "the same, with no try left for b"
    NEWER_A = "the same, with a newer a"
    NO_BOOT_A = "the same, with a boot volume a that is all zeros"
    RESCUE = "both counters are spent: the rescue, a key, a healthy slot"
    REPAIR = "slot b cannot start: slot a does, and writes it anew"
    REPAIR_SELF = "slot b is bad where no boot reads it: it leaves for slot a, which writes it anew"
    WRITES = "two rooms write as they like, behind the write log"
    PC_NVME = "a PC with an NVMe disk, a USB keyboard and an Intel card"
    PC_SATA = "the same with a SATA disk and nothing of a virtual machine: the production image"
    PC_USB = "the same started from a USB stick"
    BUILDER = "checked devices of the builder, and a network card that is parked, a wrong clock"
    OFFENDER = "an organ that takes memory without end, until its memory.max ends it"
    ENDLESS = "a caller whose message never ends, until its callee's memory.max ends the callee"
    SECURE = "Secure Boot: what the owner signed"
    SECURE_UNSIGNED = "Secure Boot: a UKI without its signature"
    SECURE_LINE = "Secure Boot: a changed command line in a UKI"
    SECURE_LOADER = "Secure Boot: a flipped bit in systemd-boot"
    SECURE_FIRST = "Secure Boot: a flipped bit in the first program"
    SECURE_OFF = "the changed command line with Secure Boot off"
    DATA = "a persist of zeroes: healthy, with a closed gate"
    UPDATE = "an update that becomes what runs, and one that does not start: the machine starts itself anew"
    DEMO = "the demo: put"
    DEMO_AFTER_CUT = "the demo: get, and all that follows"
    DEMO_FLIPPED = "the demo: a flipped byte"
    FAULT_REPAIR = "the fault matrix: a slot that rotted is replaced, behind the write log"
    FAULT_CUT = "the fault matrix: the power cut in the middle of that"
    FAULT_VOLUME = "the fault matrix: a boot volume that is gone"
    FAULT_RESCUE = "the fault matrix: no try left"

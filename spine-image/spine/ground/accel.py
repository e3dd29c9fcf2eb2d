"""Finds out whether KVM truly runs a guest here, by running one.

An open /dev/kvm proves nothing: there are hosts on which it opens and the guest then hangs or QEMU dies.
The proof is a ROM of 64 KiB for the same processor model as the real machine, which enters 32-bit protected
mode and writes to a port that ends QEMU with a known code. The verdict is kept in the cache until this host
boots again. Touches /dev/kvm, one short-lived QEMU process and one file in the cache. Fails into "does not
work" with a reason.
"""

import json
import os
import struct
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path

from spine import paths
from spine.errors import Exit, SpineError

QEMU = "qemu-system-x86_64"
# The processor models that the machine may get, best first. QEMU 7.2 ends itself on hosts whose KVM offers
# bits of IA32_ARCH_CAPABILITIES that it does not know; without that register it may run.
CPUS = ("max", "max,arch-capabilities=off")
# The model when it is emulated. `max` says that `rep stosb` is the fast way to fill memory, and a guest that
# believes it fills every page a byte at a time: under TCG each is an instruction, a sixth of a boot.
EMULATED = "max,erms=off,fsrm=off"
KVM = Path("/dev/kvm")
# A guest of twenty instructions ends within milliseconds; QEMU itself needs a fraction of a second to start.
PROOF_S = 3.0
ROM_BYTES = 64 * 1024
EXIT_PORT = 0xF4
WRITTEN = 0x31
# isa-debug-exit ends QEMU with (value << 1) | 1.
PROVED = WRITTEN << 1 | 1


@dataclass(frozen=True)
class Verdict:
    """Whether KVM works and with which processor model, or the reason why not."""

    works: bool
    reason: str = ""
    cpu: str = CPUS[0]


def choose(wanted: str) -> tuple[str, str]:
    """(`kvm` or `tcg`, why not KVM or ""). SpineError (3) when KVM was asked for and does not work."""
    if wanted == "tcg":
        return "tcg", ""
    verdict = kvm()
    if verdict.works:
        return "kvm", ""
    if wanted == "kvm":
        raise SpineError(
            "KVM does not work here", verdict.reason, "./spine boot --accel tcg", Exit.HOST_NOT_READY
        )
    return "tcg", verdict.reason


def kvm(*, again: bool = False) -> Verdict:
    """The verdict of this boot of the host; the guest is run when there is none yet, or `again`."""
    if not KVM.exists():
        return Verdict(False, f"{KVM} is not there")
    if not os.access(KVM, os.R_OK | os.W_OK):
        return Verdict(False, f"{KVM} may not be opened by uid {os.geteuid()}")
    kept = _kept()
    if kept is not None and not again:
        return kept
    verdict = Verdict(False)
    for cpu in CPUS:
        verdict = prove(cpu=cpu)
        if verdict.works:
            break
    remember(verdict)
    return verdict


def remember(verdict: Verdict) -> None:
    """Keep a verdict until this host boots again."""
    file = paths.private(paths.cache()) / "kvm.json"
    document = {"boot": _boot_id(), **asdict(verdict)}
    # Of two that prove it at once each has its own.
    draft = file.with_suffix(f".{os.getpid()}")
    draft.write_text(json.dumps(document) + "\n", encoding="utf-8")
    draft.rename(file)


def prove(accel: str = "kvm", cpu: str = CPUS[0]) -> Verdict:
    """Run the guest on this processor model. SpineError (3) when there is no QEMU."""
    file = paths.private(paths.cache()) / "proof.rom"
    draft = file.with_suffix(f".{os.getpid()}")
    draft.write_bytes(rom())
    draft.rename(file)
    command = [QEMU, "-nodefaults", "-no-user-config", "-machine", "q35", "-accel", accel, "-cpu", cpu]
    command += ["-smp", "2", "-m", "16", "-display", "none", "-no-reboot", "-bios", str(file)]
    command += ["-device", f"isa-debug-exit,iobase={EXIT_PORT:#x},iosize=4"]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            timeout=PROOF_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Verdict(False, f"the guest hangs: a test of twenty instructions did not end in {PROOF_S:g} s")
    except FileNotFoundError as error:
        raise SpineError(
            "there is no QEMU",
            f"{QEMU} is not installed",
            "apt-get install --no-install-recommends qemu-system-x86",
            Exit.HOST_NOT_READY,
        ) from error
    if done.returncode == PROVED:
        return Verdict(True, cpu=cpu)
    said = done.stderr.strip().splitlines()
    why = said[0].removeprefix(f"{QEMU}: ") if said else "without a word"
    return Verdict(False, f"the guest does not run: QEMU ended with {done.returncode} ({why})")


def rom() -> bytes:
    """The guest: what a real one does first (FPU, CPUID, protected mode), then the write that ends QEMU.

    FPU initialisation is in it for a reason: hosts that emulate KVM have stopped there.
    """
    table = 0x100
    wide = 0x200
    image = bytearray(b"\xf4" * ROM_BYTES)
    start = bytes.fromhex("fa dbe3 6631c0 0fa2")  # cli; fninit; xor eax,eax; cpuid
    start += b"\x2e\x66\x0f\x01\x16" + struct.pack("<H", table)  # lgdt cs:[table]
    start += bytes.fromhex("0f20c0 0c01 0f22c0")  # mov eax,cr0; or al,1; mov cr0,eax
    start += b"\x66\xea" + struct.pack("<IH", 0xF0000 + wide, 8)  # jmp 8:wide
    image[: len(start)] = start
    entries = struct.pack("<QQQ", 0, 0x00CF9B000000FFFF, 0x00CF93000000FFFF)  # null, flat code, flat data
    pointer = struct.pack("<HIH", len(entries) - 1, 0xF0000 + table + 8, 0)
    image[table : table + 8 + len(entries)] = pointer + entries
    # mov ax,16; mov ds,ax; fninit; mov eax,cr4; or eax,0x200; mov cr4,eax; xorps xmm0,xmm0;
    # mov al,WRITTEN; out EXIT_PORT,al
    body = bytes.fromhex("66b81000 8ed8 dbe3 0f20e0 0d00020000 0f22e0 0f57c0")
    body += bytes([0xB0, WRITTEN, 0xE6, EXIT_PORT])
    image[wide : wide + len(body)] = body
    reset = ROM_BYTES - 16
    image[reset : reset + 5] = b"\xea" + struct.pack("<HH", 0, 0xF000)  # jmp f000:0
    return bytes(image)


def _kept() -> Verdict | None:
    try:
        found = json.loads((paths.cache() / "kvm.json").read_text(encoding="utf-8"))
        if found["boot"] == _boot_id():
            return Verdict(bool(found["works"]), str(found["reason"]), str(found["cpu"]))
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()

"""Makes the rescue, the UEFI program that a machine starts when neither pair can be started.

Compiles spine-image/rescue/rescue.c with the host's compiler and links it as a PE program that runs wherever
the firmware puts it: the same bytes from the same source and compiler, in any directory. Touches the
directory it is given. Refuses an object that has an address in it, which nobody would put right at run time.
"""

import re
from pathlib import Path

from spine.errors import SpineError
from spine.image import commands

SOURCE, SCRIPT = "rescue.c", "rescue.lds"
FILES = tuple(f"spine-image/rescue/{name}" for name in (SOURCE, SCRIPT))

# No headers and no library; the firmware's stack has no canary, and its interrupts use the space below it.
# What the linker script does not place is an error there, so nothing may come that nobody asked for.
COMPILE = (
    *("gcc", "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-Os", "-ffreestanding", "-nostdinc", "-fPIC"),
    *("-fno-stack-protector", "-fcf-protection=none", "-mno-red-zone", "-mgeneral-regs-only"),
    *("-fvisibility=hidden", "-fno-asynchronous-unwind-tables", "-fno-ident", "-fno-merge-constants"),
    "-fno-tree-loop-distribute-patterns",
)
# Subsystem 10 is a UEFI application. At base 0 nothing is where it says until the firmware has moved it.
LINK = (
    *("ld", "-m", "i386pep", "-T", SCRIPT, "--orphan-handling=error", "--subsystem", "10"),
    *("-e", "efi_main", "--image-base", "0", "--nxcompat", "--no-insert-timestamp", "-s"),
)
# Places that are counted from where they stand, and so are right at any address.
RELATIVE = frozenset({"R_X86_64_PC32", "R_X86_64_PLT32"})


def make(directory: Path, source: bytes, script: bytes) -> bytes:
    """The program, from the texts of its source and its linker script; SpineError when it cannot be made."""
    (directory / SOURCE).write_bytes(source)
    (directory / SCRIPT).write_bytes(script)
    made, program = "rescue.o", "rescue.efi"
    what = "the rescue cannot be made"
    commands.run([*COMPILE, "-c", "-o", made, SOURCE], cwd=directory, what=what)
    places = commands.run(["readelf", "--relocs", "--wide", made], cwd=directory, what=what).decode()
    if strange := set(re.findall(r"\bR_X86_64_\w+", places)) - RELATIVE:
        raise SpineError(
            what,
            f"it has an address in it ({', '.join(sorted(strange))}), which is right at one place only",
            f"$EDITOR {FILES[0]}   # no table of pointers",
        )
    commands.run([*LINK, "-o", program, made], cwd=directory, what=what)
    data = (directory / program).read_bytes()
    for name in (SOURCE, SCRIPT, made, program):
        (directory / name).unlink()
    return data

"""Compiles the small C programs that personas carry, without a C library.

Runs gcc in a directory of the caller's, on a copy of the source: no path of this host gets into the
program, so its bytes depend on the source and the compiler alone. A program that does not compile is told
with the compiler's own words.
"""

from pathlib import Path

from spine import paths
from spine.errors import Exit, SpineError
from spine.image import commands

DIRECTORY = "personas/programs"
# Where a persona finds them.
TARGET = "/usr/bin"
# Every one is small, or it should be a package (bytes).
SIZE_MAX = 100_000
# No C library, nothing that differs between two runs, no table that only a debugger reads. A shadow stack and
# the like need a library that sets them up.
FLAGS = (
    *("-std=c11", "-Os", "-Wall", "-Wextra", "-Werror", "-march=x86-64"),
    *("-ffreestanding", "-fno-builtin", "-nostdlib", "-static", "-fno-pie", "-no-pie"),
    *("-fno-stack-protector", "-fcf-protection=none", "-fno-asynchronous-unwind-tables", "-fno-ident"),
    *("-Wl,--build-id=none", "-Wl,-z,noexecstack", "-Wl,-z,separate-code", "-s"),
)


def names() -> list[str]:
    """The programs there are."""
    return sorted(path.stem for path in (paths.ROOT / DIRECTORY).glob("*.c"))


def source(name: str) -> bytes:
    """The C file of a program; SpineError when there is none."""
    file = paths.ROOT / DIRECTORY / f"{name}.c"
    try:
        return file.read_bytes()
    except FileNotFoundError as error:
        raise SpineError(
            f"there is no program {name}",
            f"{file} is not there; the programs are {', '.join(names())}",
            "$EDITOR personas/NAME/persona.toml   # programs",
            Exit.REFUSED,
        ) from error


def compiler() -> str:
    """Which compiler it is: the programs' bytes depend on it."""
    return commands.run(["gcc", "--version"], what="the compiler cannot be asked").decode().split("\n")[0]


def compile_program(name: str, text: bytes, directory: Path) -> bytes:
    """The program's bytes. `directory` must be empty; what is left in it is of no use."""
    (directory / f"{name}.c").write_bytes(text)
    commands.run(
        ["gcc", *FLAGS, "-o", name, f"{name}.c"], cwd=directory, what=f"the program {name} cannot be compiled"
    )
    made = (directory / name).read_bytes()
    if len(made) > SIZE_MAX:
        raise SpineError(
            f"the program {name} is too large",
            f"it has {len(made)} bytes, of at most {SIZE_MAX}",
            f"$EDITOR {DIRECTORY}/{name}.c",
            Exit.REFUSED,
        )
    return made

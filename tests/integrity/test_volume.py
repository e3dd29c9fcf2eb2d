"""What is said of the files on a boot volume: every kind of difference, and names of any bytes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from organs.integrity.verify import Judged, Verdict
from organs.integrity.volume import (
    BROKEN,
    DIRECTORY,
    SHOWN_CHARACTERS_MAX,
    File,
    Seen,
    counted,
    judge,
    shown,
    tries,
)


def release(version: str, counter: str = "+3-0") -> tuple[File, ...]:
    """The boot volume of slot A; `counter` is that in the program's name."""
    return (
        File(("EFI",), DIRECTORY),
        File(("loader",), DIRECTORY),
        File(("EFI", "BOOT"), DIRECTORY),
        File(("EFI", "Linux"), DIRECTORY),
        File(("loader", "loader.conf"), "conf"),
        File(("EFI", "BOOT", "BOOTX64.EFI"), "loader"),
        File(("EFI", "Linux", f"spine-a{counter}.efi"), f"program a {version}"),
        File(("EFI", "Linux", "spine-rescue.efi"), "rescue"),
    )


OWN = release("1")
LOADER = 5


def but(files: tuple[File, ...], index: int, *others: File) -> Seen:
    """The files with others in the place of one."""
    return Seen(files=(*files[:index], *others, *files[index + 1 :]))


TAMPERED = Verdict.TAMPERED


@pytest.mark.proves("INV-SLOT-8")
@pytest.mark.parametrize(
    ("seen", "carried", "judged"),
    [
        (None, OWN, Judged(Verdict.PENDING)),
        (Seen(unreadable="I/O error"), OWN, Judged(Verdict.UNREADABLE, (), "I/O error")),
        (
            Seen(no_volume="no boot sector signature"),
            OWN,
            Judged(TAMPERED, ("volume",), "no file system of ours: no boot sector signature"),
        ),
        (
            Seen(files=release("1")),
            None,
            Judged(Verdict.UNSIGNED, (), "no verified slot says what it must hold"),
        ),
        (Seen(files=release("1")), OWN, Judged(Verdict.VERIFIED)),
        (Seen(files=release("1", "+2-1")), OWN, Judged(Verdict.VERIFIED)),
        (Seen(files=release("1", "+0-9")), OWN, Judged(Verdict.VERIFIED)),
        (
            Seen(files=release("2", "+2-1")),
            OWN,
            Judged(TAMPERED, ("EFI/Linux/spine-a+2-1.efi",), "changed: EFI/Linux/spine-a+2-1.efi"),
        ),
        # Without its counter a program would be started for ever.
        (
            Seen(files=release("1", "")),
            OWN,
            Judged(
                TAMPERED,
                ("EFI/Linux/spine-a.efi", "EFI/Linux/spine-a+3-0.efi"),
                "extra: EFI/Linux/spine-a.efi; missing: EFI/Linux/spine-a+3-0.efi",
            ),
        ),
        (
            Seen(files=(*release("1"), File(("EFI", "Linux", "spine-b+3-0.efi"), "program b 1"))),
            OWN,
            Judged(TAMPERED, ("EFI/Linux/spine-b+3-0.efi",), "extra: EFI/Linux/spine-b+3-0.efi"),
        ),
        # A rename that was cut short: two names of one file.
        (
            Seen(files=(*release("1"), File(("EFI", "Linux", "spine-a+2-1.efi"), "program a 1"))),
            OWN,
            Judged(Verdict.VERIFIED),
        ),
        (
            Seen(files=(*release("1"), File(("EFI", "Linux", "spine-a+2-1.efi"), "program a 2"))),
            OWN,
            Judged(TAMPERED, ("EFI/Linux/spine-a+2-1.efi",), "changed: EFI/Linux/spine-a+2-1.efi"),
        ),
        # The same name again is another file that the firmware may take.
        (
            Seen(files=(*release("1"), File(("efi", "linux", "SPINE-A+3-0.EFI"), "program a 1"))),
            OWN,
            Judged(TAMPERED, ("efi/linux/SPINE-A+3-0.EFI",), "twice there: efi/linux/SPINE-A+3-0.EFI"),
        ),
        (
            but(release("1"), LOADER),
            OWN,
            Judged(TAMPERED, ("EFI/BOOT/BOOTX64.EFI",), "missing: EFI/BOOT/BOOTX64.EFI"),
        ),
        (
            but(release("1"), LOADER, File(("EFI", "BOOT", "BOOTX64.EFI"), "other")),
            OWN,
            Judged(TAMPERED, ("EFI/BOOT/BOOTX64.EFI",), "changed: EFI/BOOT/BOOTX64.EFI"),
        ),
        (
            but(release("1"), LOADER, File(("EFI", "BOOT", "BOOTX64.EFI"), BROKEN)),
            OWN,
            Judged(TAMPERED, ("EFI/BOOT/BOOTX64.EFI",), "changed: EFI/BOOT/BOOTX64.EFI"),
        ),
        (
            but(release("1"), LOADER, File(("EFI", "BOOT", "BOOTX64.EFI"), DIRECTORY)),
            OWN,
            Judged(TAMPERED, ("EFI/BOOT/BOOTX64.EFI",), "changed: EFI/BOOT/BOOTX64.EFI"),
        ),
        (
            Seen(files=(*release("1"), File(("EFI", "Linux", "other+3-0.efi"), "program a 1"))),
            OWN,
            Judged(TAMPERED, ("EFI/Linux/other+3-0.efi",), "extra: EFI/Linux/other+3-0.efi"),
        ),
        # A slash in a name makes no path.
        (
            but(release("1"), LOADER, File(("EFI/BOOT/BOOTX64.EFI",), "loader")),
            OWN,
            Judged(
                TAMPERED,
                ("EFI/BOOT/BOOTX64.EFI",),
                "extra: EFI/BOOT/BOOTX64.EFI; missing: EFI/BOOT/BOOTX64.EFI",
            ),
        ),
    ],
)
def test_verdicts(seen: Seen | None, carried: tuple[File, ...] | None, judged: Judged) -> None:
    assert judge(seen, carried) == judged


RIGHT = {file.path: file.digest for file in (*release("1"), *release("1", "+1-2"), *release("1", "+0-3"))}
files = st.lists(
    st.builds(
        File,
        st.sampled_from([*RIGHT, ("EFI", "Linux", "spine-a.efi")]) | st.tuples(st.text(max_size=3)),
        st.sampled_from([BROKEN, DIRECTORY, *(file.digest for file in release("1"))]),
    ),
    max_size=12,
)


@pytest.mark.proves("INV-SLOT-8")
@pytest.mark.proves("INV-SLOT-14")
@given(files, st.permutations(release("1")), st.integers(0, 8))
def test_verified_is_said_of_all_files_right_and_of_nothing_else(
    drawn: list[File], kept: list[File], count: int
) -> None:
    listing = (*kept[:count], *drawn)
    judged = judge(Seen(files=listing), OWN)
    plain = {path[-1].split("+")[0].lower() for path in (file.path for file in listing)}
    wanted = {file.path[-1].split("+")[0].lower() for file in release("1")}
    paths = [tuple(name.lower() for name in file.path) for file in listing]
    all_right = all(RIGHT.get(file.path) == file.digest for file in listing)
    assert (judged.verdict is Verdict.VERIFIED) == (
        all_right and plain == wanted and len(set(paths)) == len(paths)
    )
    if judged.verdict is TAMPERED:
        assert judged.parts
        assert judged.detail
    if judged.verdict is Verdict.VERIFIED:
        assert tries(Seen(files=listing), "a") is not None


@given(st.text(max_size=6))
def test_nothing_else_stands_for_a_program_with_its_counter(name: str) -> None:
    """How such a program is named among ourselves is no name that a volume may have."""
    more = (
        File(("EFI", "Linux", "spine-a.efi"), DIRECTORY),
        File(("EFI", "Linux", "spine-a.efi", name), "program a 1"),
    )
    assert judge(Seen(files=(*OWN[:6], *more, OWN[7])), OWN).verdict is TAMPERED


@pytest.mark.parametrize(
    ("names", "left"),
    [
        ((), None),
        (("spine-a.efi",), None),
        (("spine-b+3-0.efi",), None),
        (("spine-a+0-3.efi",), 0),
        (("spine-a+2-1.efi", "spine-a+1-2.efi", "spine-a+0-9.efi", "spine-b+3-0.efi"), 2),
    ],
)
def test_tries(names: tuple[str, ...], left: int | None) -> None:
    seen = Seen(files=tuple(File(("efi", "LINUX", name), "") for name in names))
    assert tries(seen, "a") == left
    assert len(counted(seen)) == sum("+" in name for name in names)
    elsewhere = Seen(files=tuple(File(("EFI", name), "") for name in names))
    assert tries(elsewhere, "a") is None


@given(st.lists(st.text(st.characters(max_codepoint=0xFFFF), max_size=255), min_size=1, max_size=4))
def test_any_name_can_be_shown(names: list[str]) -> None:
    # Units of UTF-16 that are no character come from a volume too.
    text = shown((*names, "\ud800\n"))
    assert text.isascii()
    assert text.isprintable()
    assert len(text) <= SHOWN_CHARACTERS_MAX

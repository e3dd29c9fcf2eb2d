"""What is said of the files on the ESP: every kind of difference, alone and drawn, and names of any bytes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from organs.integrity.esp import BROKEN, DIRECTORY, SHOWN_CHARACTERS_MAX, File, Seen, judge, shown
from organs.integrity.verify import Judged, Verdict


def release(version: str, *, a: str = "+3-0", b: str = "+3-0") -> tuple[File, ...]:
    """The ESP of one release; `a` and `b` are the counters in the names."""
    return (
        File(("EFI",), DIRECTORY),
        File(("loader",), DIRECTORY),
        File(("EFI", "BOOT"), DIRECTORY),
        File(("EFI", "Linux"), DIRECTORY),
        File(("loader", "loader.conf"), "conf"),
        File(("EFI", "BOOT", "BOOTX64.EFI"), "loader"),
        File(("EFI", "Linux", f"spine-a{a}.efi"), f"program a {version}"),
        File(("EFI", "Linux", f"spine-b{b}.efi"), f"program b {version}"),
    )


BOTH = {"a": release("1"), "b": release("1")}
LOADER = 5


def but(files: tuple[File, ...], index: int, *others: File) -> Seen:
    """The files with others in the place of one."""
    return Seen(files=(*files[:index], *others, *files[index + 1 :]))


TAMPERED = Verdict.TAMPERED


@pytest.mark.proves("INV-SLOT-8")
@pytest.mark.parametrize(
    ("seen", "carried", "judged"),
    [
        (None, BOTH, Judged(Verdict.PENDING)),
        (Seen(unreadable="I/O error"), BOTH, Judged(Verdict.UNREADABLE, (), "I/O error")),
        (
            Seen(no_volume="no boot sector signature"),
            BOTH,
            Judged(TAMPERED, ("volume",), "no file system of ours: no boot sector signature"),
        ),
        (
            Seen(files=release("1")),
            {},
            Judged(Verdict.UNSIGNED, (), "no verified slot says what it must hold"),
        ),
        (Seen(files=release("1")), BOTH, Judged(Verdict.VERIFIED)),
        (Seen(files=release("1", a="+2-1", b="+0-3")), BOTH, Judged(Verdict.VERIFIED)),
        (Seen(files=release("1")), {"a": release("1")}, Judged(Verdict.VERIFIED)),
        # While an update is tried, each slot has its own program.
        (
            Seen(files=(*release("1")[:7], release("2")[7])),
            {"a": release("1"), "b": release("2")},
            Judged(Verdict.VERIFIED),
        ),
        (
            Seen(files=(*release("1")[:6], release("2")[6], release("1")[7])),
            {"a": release("1"), "b": release("2")},
            Judged(
                TAMPERED,
                ("EFI/Linux/spine-a+3-0.efi", "EFI/Linux/spine-b+3-0.efi"),
                "changed: EFI/Linux/spine-a+3-0.efi, EFI/Linux/spine-b+3-0.efi",
            ),
        ),
        # A rename that was cut short: two names of one file.
        (
            Seen(files=(*release("1"), File(("EFI", "Linux", "spine-a+2-1.efi"), "program a 1"))),
            BOTH,
            Judged(Verdict.VERIFIED),
        ),
        (
            Seen(files=(*release("1"), File(("EFI", "Linux", "spine-a+2-1.efi"), "program b 1"))),
            BOTH,
            Judged(TAMPERED, ("EFI/Linux/spine-a+2-1.efi",), "changed: EFI/Linux/spine-a+2-1.efi"),
        ),
        # The same name again is another file that the firmware may take.
        (
            Seen(files=(*release("1"), File(("efi", "linux", "SPINE-A+3-0.EFI"), "program a 1"))),
            BOTH,
            Judged(TAMPERED, ("efi/linux/SPINE-A+3-0.EFI",), "twice there: efi/linux/SPINE-A+3-0.EFI"),
        ),
        (
            but(release("1"), LOADER),
            BOTH,
            Judged(TAMPERED, ("EFI/BOOT/BOOTX64.EFI",), "missing: EFI/BOOT/BOOTX64.EFI"),
        ),
        (
            but(release("1"), LOADER, File(("EFI", "BOOT", "BOOTX64.EFI"), "other")),
            BOTH,
            Judged(TAMPERED, ("EFI/BOOT/BOOTX64.EFI",), "changed: EFI/BOOT/BOOTX64.EFI"),
        ),
        (
            but(release("1"), LOADER, File(("EFI", "BOOT", "BOOTX64.EFI"), BROKEN)),
            BOTH,
            Judged(TAMPERED, ("EFI/BOOT/BOOTX64.EFI",), "changed: EFI/BOOT/BOOTX64.EFI"),
        ),
        (
            but(release("1"), LOADER, File(("EFI", "BOOT", "BOOTX64.EFI"), DIRECTORY)),
            BOTH,
            Judged(TAMPERED, ("EFI/BOOT/BOOTX64.EFI",), "changed: EFI/BOOT/BOOTX64.EFI"),
        ),
        (
            Seen(files=(*release("1"), File(("EFI", "Linux", "other+3-0.efi"), "program a 1"))),
            BOTH,
            Judged(TAMPERED, ("EFI/Linux/other+3-0.efi",), "extra: EFI/Linux/other+3-0.efi"),
        ),
        # A slash in a name makes no path.
        (
            but(release("1"), LOADER, File(("EFI/BOOT/BOOTX64.EFI",), "loader")),
            BOTH,
            Judged(
                TAMPERED,
                ("EFI/BOOT/BOOTX64.EFI",),
                "extra: EFI/BOOT/BOOTX64.EFI; missing: EFI/BOOT/BOOTX64.EFI",
            ),
        ),
    ],
)
def test_verdicts(seen: Seen | None, carried: dict[str, tuple[File, ...]], judged: Judged) -> None:
    assert judge(seen, carried) == judged


files = st.lists(
    st.builds(
        File,
        st.sampled_from([file.path for file in (*release("1"), *release("1", a="+1-2", b="+0-3"))])
        | st.tuples(st.text(max_size=3)),
        st.sampled_from([BROKEN, DIRECTORY, *(file.digest for file in release("1"))]),
    ),
    max_size=12,
)


@pytest.mark.proves("INV-SLOT-8")
@given(files, st.permutations(release("1")), st.integers(0, 8))
def test_verified_is_said_of_all_files_right_and_of_nothing_else(
    drawn: list[File], kept: list[File], count: int
) -> None:
    listing = (*kept[:count], *drawn)
    judged = judge(Seen(files=listing), BOTH)
    right = {file.path: file.digest for file in (*release("1"), *release("1", a="+1-2", b="+0-3"))}
    plain = {path[-1].split("+")[0].lower() for path in (file.path for file in listing)}
    wanted = {file.path[-1].split("+")[0].lower() for file in release("1")}
    paths = [tuple(name.lower() for name in file.path) for file in listing]
    all_right = all(right.get(file.path) == file.digest for file in listing)
    assert (judged.verdict is Verdict.VERIFIED) == (
        all_right and plain == wanted and len(set(paths)) == len(paths)
    )
    if judged.verdict is TAMPERED:
        assert judged.parts
        assert judged.detail


@given(st.lists(st.text(st.characters(max_codepoint=0xFFFF), max_size=255), min_size=1, max_size=4))
def test_any_name_can_be_shown(names: list[str]) -> None:
    # Units of UTF-16 that are no character come from a volume too.
    text = shown((*names, "\ud800\n"))
    assert text.isascii()
    assert text.isprintable()
    assert len(text) <= SHOWN_CHARACTERS_MAX

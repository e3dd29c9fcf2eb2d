"""What goes into a persona's image from a package, and what is refused; the packages are tar archives."""

from __future__ import annotations

import contextlib
import io
import os
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spine.persona import tree as trees
from spine.persona.tree import Folder, Link, Regular, Tree, TreeRefused


def member(name: str, kind: bytes = tarfile.REGTYPE, mode: int = 0o644, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.mode, info.linkname = kind, mode, link
    return info


def archive(*members: tarfile.TarInfo | tuple[tarfile.TarInfo, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for each in members:
            info, data = each if isinstance(each, tuple) else (each, b"")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def tree(*members: tarfile.TarInfo | tuple[tarfile.TarInfo, bytes]) -> Tree:
    made = Tree()
    made.add_package("a package", archive(*members))
    return made


def test_what_a_package_has() -> None:
    made = tree(
        member("./", tarfile.DIRTYPE),
        member("./usr/", tarfile.DIRTYPE, 0o755),
        (member("./usr/bin/x", mode=0o755), b"program"),
        member("./usr/bin/y", tarfile.SYMTYPE, link="x"),
        member("./usr/bin/z", tarfile.LNKTYPE, link="./usr/bin/x"),
    )
    assert made.entries == {
        "/usr": Folder(0o755),
        "/usr/bin": Folder(0o755),
        "/usr/bin/x": Regular(0o755, b"program"),
        "/usr/bin/y": Link("x"),
        "/usr/bin/z": Regular(0o755, b"program"),
    }
    assert made.resolve("/usr/bin/y") == "/usr/bin/x"
    assert made.resolve("/usr/bin/none") is None


@pytest.mark.proves("INV-PERSONA-20")
@pytest.mark.parametrize("mode", [0o4755, 0o2755, 0o1755, 0o6755])
def test_nothing_makes_anybody_somebody_else(mode: int) -> None:
    made = tree(member("./d", tarfile.DIRTYPE, mode), (member("./d/su", mode=mode), b""))
    assert made.entries == {"/d": Folder(0o755), "/d/su": Regular(0o755, b"")}


@pytest.mark.proves("INV-PERSONA-20")
@pytest.mark.parametrize("kind", [tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.CONTTYPE, b"V"])
def test_no_device_and_no_pipe(kind: bytes) -> None:
    if kind == tarfile.CONTTYPE:
        # An old word for a plain file.
        assert tree(member("./x", kind)).entries == {"/x": Regular(0o644, b"")}
        return
    with pytest.raises(TreeRefused):
        tree(member("./x", kind))


@pytest.mark.proves("INV-PERSONA-21")
@pytest.mark.parametrize(
    "members",
    [
        [member("../x")],
        [member("./a/../../x")],
        [member("/etc/x/../y")],
        [member("./a//b")],
        [member("./a/./b")],
        [member("./dev/../etc/x")],
        [member("./a\nb")],
        [member("./a", tarfile.SYMTYPE, link="../b")],
        [member("./a/b", tarfile.SYMTYPE, link="../../c")],
        [member("./a", tarfile.SYMTYPE, link="/../c")],
        [member("./a", tarfile.SYMTYPE, link="b/../../c")],
        [member("./a", tarfile.SYMTYPE, link="")],
        # A way through a link is refused, wherever the link leads.
        [member("./a", tarfile.SYMTYPE, link="/etc"), member("./a/passwd")],
        [member("./b", tarfile.DIRTYPE), member("./a", tarfile.SYMTYPE, link="b"), member("./a/c")],
        [member("./a"), member("./a/b")],
        [member("./a", tarfile.LNKTYPE, link="/etc/passwd")],
        [member("./a", tarfile.LNKTYPE, link="./a")],
        # One path is one thing.
        [member("./a"), member("./a", tarfile.DIRTYPE)],
        [member("./a", tarfile.SYMTYPE, link="b"), member("./a", tarfile.DIRTYPE)],
        [(member("./a"), b"1"), (member("./a"), b"2")],
    ],
)
def test_no_path_leads_out(members: list[tarfile.TarInfo]) -> None:
    with pytest.raises(TreeRefused):
        tree(*members)


def test_an_absolute_link_is_within_the_room() -> None:
    made = tree(member("./a", tarfile.SYMTYPE, link="/b/c"), (member("./b/c"), b"there"))
    assert made.resolve("/a") == "/b/c"


def test_links_in_a_circle_lead_nowhere() -> None:
    made = tree(member("./a", tarfile.SYMTYPE, link="b"), member("./b", tarfile.SYMTYPE, link="a"))
    assert made.resolve("/a") is None


def test_what_the_spine_mounts_over_and_manuals_are_left_out() -> None:
    made = tree(
        member("./dev/null", tarfile.CHRTYPE),
        member("./run/x"),
        member("./usr/share/man/man1/x.1"),
        member("./usr/share/doc/x/changelog.gz"),
        (member("./usr/share/doc/x/copyright"), b"licence"),
    )
    assert [path for path, entry in made.entries.items() if isinstance(entry, Regular)] == [
        "/usr/share/doc/x/copyright"
    ]


def test_two_packages_may_share_a_directory_and_an_equal_file() -> None:
    made = tree((member("./d/a"), b"1"))
    made.add_package("another", archive(member("./d", tarfile.DIRTYPE), (member("./d/a"), b"1")))
    with pytest.raises(TreeRefused, match="is different in another"):
        made.add_package("a third", archive((member("./d/a"), b"2")))
    made.add("the recipe", "/d/a", Regular(0o600, b"3"), instead=True)
    assert made.entries["/d/a"] == Regular(0o600, b"3")
    with pytest.raises(TreeRefused, match="is something else"):
        made.add("the recipe", "/d", Regular(0o600, b"3"), instead=True)


def test_a_tree_has_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trees, "TREE_BYTES_MAX", 10)
    with pytest.raises(TreeRefused, match="is one too many"):
        tree((member("./a"), b"123456"), (member("./b"), b"123456"))
    with pytest.raises(TreeRefused, match="is larger than"):
        tree((member("./a"), b"12345678901"))
    # A file in the place of another counts once.
    made = tree((member("./a"), b"123456"))
    made.add("the recipe", "/a", Regular(0o644, b"1234567890"), instead=True)
    monkeypatch.setattr(trees, "ENTRIES_MAX", 3)
    with pytest.raises(TreeRefused, match="is one too many"):
        tree(*(member(f"./{number}") for number in range(4)))


def test_etc_must_be_a_directory() -> None:
    made = tree(member("./etc", tarfile.SYMTYPE, link="usr"))
    with pytest.raises(TreeRefused, match="must be a directory"):
        made.spine_directories()


@given(st.binary(max_size=2048))
def test_any_archive_ends_in_a_refusal_or_a_tree(data: bytes) -> None:
    with contextlib.suppress(TreeRefused):
        Tree().add_package("a package", data)


NAMES = st.lists(st.sampled_from(["a", "b", "..", ".", "", "dev", "etc"]), max_size=4).map("/".join)
MEMBERS = st.builds(
    member,
    NAMES,
    st.sampled_from([tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE]),
    st.integers(0, 0o7777),
    NAMES,
)


@pytest.mark.proves("INV-PERSONA-21")
@given(st.lists(MEMBERS, max_size=6))
def test_a_tree_is_written_below_its_directory_and_nowhere_else(
    tmp_path_factory: pytest.TempPathFactory, members: list[tarfile.TarInfo]
) -> None:
    made = Tree()
    try:
        made.add_package("a package", archive(*members))
        made.spine_directories()
    except TreeRefused:
        return
    outside = tmp_path_factory.mktemp("outside")
    made.write(outside / "tree")
    assert os.listdir(outside) == ["tree"]
    found = {f"/{path.relative_to(outside / 'tree')}" for path in (outside / "tree").rglob("*")}
    assert found == set(made.entries)
    for path, entry in made.entries.items():
        place = Path(f"{outside}/tree{path}")
        if isinstance(entry, Link):
            assert os.readlink(place) == entry.target
        else:
            assert place.lstat().st_mode & 0o7777 == entry.mode
            assert entry.mode & 0o7000 == 0

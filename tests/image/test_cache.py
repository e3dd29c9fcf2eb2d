"""Nothing half-made is ever seen, whatever ends the work."""

import errno
import os
import threading
from pathlib import Path

import pytest

from spine.errors import SpineError
from spine.image import build
from spine.image.cache import Cache, digest


def cache(tmp_path: Path, said: list[str] | None = None) -> Cache:
    return Cache(tmp_path / "cache", (said if said is not None else []).append)


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), OSError(errno.ENOSPC, "full"), ValueError()])
def test_work_that_ends_early_leaves_nothing(tmp_path: Path, failure: BaseException) -> None:
    kept = cache(tmp_path)

    def make(directory: Path) -> None:
        (directory / "half").write_bytes(b"x")
        raise failure

    with pytest.raises((KeyboardInterrupt, SpineError, ValueError)):
        kept.entry("kind", "k" * 64, make)
    assert list((kept.root / "kind").iterdir()) == []
    made = kept.entry("kind", "k" * 64, lambda directory: (directory / "whole").touch())
    assert [path.name for path in made.iterdir()] == ["whole"]


def test_a_full_disk_is_told(tmp_path: Path) -> None:
    def make(_directory: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(SpineError) as caught:
        cache(tmp_path).entry("kind", "k" * 64, make)
    assert "disk is full" in caught.value.why


def test_what_a_killed_build_left_is_removed(tmp_path: Path) -> None:
    kept = cache(tmp_path)
    left = kept.root / "kind" / (".part-" + "d" * 64)
    left.mkdir(parents=True)
    kept.entry("kind", "k" * 64, lambda _directory: None)
    assert not left.exists()


def test_of_two_builds_at_once_one_makes_and_the_other_waits(tmp_path: Path) -> None:
    said: list[str] = []
    made: list[int] = []
    inside, waits = threading.Event(), threading.Event()

    def say(text: str) -> None:
        said.append(text)
        waits.set()

    kept = Cache(tmp_path / "cache", say)

    def make(directory: Path) -> None:
        made.append(1)
        inside.set()
        assert waits.wait(20)
        # The other one may not take what is being made for what a killed build has left.
        assert directory.is_dir()

    first = threading.Thread(target=kept.entry, args=("kind", "k" * 64, make))
    first.start()
    assert inside.wait(20)
    second = threading.Thread(target=kept.entry, args=("kind", "k" * 64, make))
    second.start()
    first.join()
    second.join()
    assert made == [1]
    assert said == ["another build is making the kind; waiting for it"]


def test_digest_keeps_parts_apart() -> None:
    assert digest("ab", "c") != digest("a", "bc")
    assert digest("ab") != digest("ab", "")


def test_delivery_replaces_all_or_nothing(tmp_path: Path) -> None:
    out, made = tmp_path / "out", tmp_path / "made"
    made.mkdir()
    for name in ("one", "two"):
        (made / name).write_text("old")
    files = {name: made / name for name in ("one", "two")}
    build.deliver(out, files, "1")
    before = (out / "one").stat().st_ino
    build.deliver(out, files, "1")
    assert (out / "one").stat().st_ino == before, "a build with nothing to do must touch nothing"
    (made / "one").write_text("new")
    with pytest.raises(SpineError):
        build.deliver(out, {**files, "two": made / "missing"}, "2")
    assert (out / "one").read_text() == "old"
    assert not list(out.glob(".part-*"))
    (out / "two").write_text("changed by somebody")
    build.deliver(out, files, "1")
    assert (out / "two").read_text() == "old"

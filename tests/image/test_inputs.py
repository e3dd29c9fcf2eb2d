"""The lock is read strictly, written as it is read, and what does not match it is refused."""

import contextlib
import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spine import paths
from spine.errors import Exit, SpineError
from spine.image import inputs
from spine.image.cache import Cache, digest

WORD = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9.+:~_-]{0,20}", fullmatch=True)
HASH = st.binary(min_size=32, max_size=32).map(bytes.hex)


@st.composite
def locks(draw: st.DrawFn) -> inputs.Inputs:
    names = draw(st.lists(WORD, unique=True, max_size=6))
    middle = draw(st.integers(0, len(names)))
    packages = tuple(
        inputs.Package(name, draw(WORD), draw(HASH), draw(st.sampled_from(inputs.USES)))
        for name in names[:middle]
    )
    wheels = tuple(inputs.Wheel(name, draw(WORD), draw(WORD), draw(HASH)) for name in names[middle:])
    return inputs.Inputs(draw(st.integers(0, 2**32 - 1)), packages, wheels)


@given(locks())
def test_what_is_written_is_what_is_read(lock: inputs.Inputs) -> None:
    assert inputs.decode(inputs.encode(lock)) == lock


@given(st.text(max_size=200))
def test_foreign_text_is_refused_or_a_lock(text: str) -> None:
    with contextlib.suppress(SpineError):
        lock = inputs.decode(text)
        assert inputs.decode(inputs.encode(lock)) == lock


@pytest.mark.parametrize(
    "wrong",
    [
        "epoch = -1",
        "epoch = true",
        "epoch = 1\nextra = 1",
        "epoch = 1\npackage = 3",
        'epoch = 1\n[[wheel]]\nname = "a"',
        'epoch = 1\n[[package]]\nname = "a"\nversion = "1; rm"\nuse = "root"\nsha256 = "00"',
        f'epoch = 1\n[[package]]\nname = "a"\nversion = "1"\nuse = "host"\nsha256 = "{"0" * 64}"',
        f'epoch = 1\n[[package]]\nname = "a"\nversion = "1"\nuse = "root"\nsha256 = "{"0" * 63}"',
    ],
)
def test_a_wrong_lock_is_refused(wrong: str) -> None:
    with pytest.raises(SpineError, match="cannot be used"):
        inputs.decode(wrong)


def test_the_lock_of_the_tree_is_in_its_own_form_and_fits_the_python_lock() -> None:
    text = (paths.ROOT / inputs.LOCK).read_text()
    lock = inputs.decode(text)
    assert inputs.encode(lock) == text
    python_lock = (paths.ROOT / inputs.PYTHON_LOCK).read_text()
    for wheel in lock.wheels:
        wanted = inputs.requirements(python_lock, [wheel.name])
        assert f"{wheel.name}=={wheel.version} " in wanted
        assert f"sha256:{wheel.sha256}" in wanted


def cache_with(tmp_path: Path, package: inputs.Package, data: bytes) -> Cache:
    """A cache whose apt directory already answers for `package`."""
    cache = Cache(tmp_path, lambda _text: None)
    directory = tmp_path / "packages" / digest(package.name, package.sha256)
    directory.mkdir(parents=True)
    (directory / "package.deb").write_bytes(data)
    return cache


def test_a_package_that_is_there_is_not_fetched_again(tmp_path: Path) -> None:
    package = inputs.Package("no-such-package", "1", hashlib.sha256(b"deb").hexdigest(), "root")
    assert inputs.fetch_package(cache_with(tmp_path, package, b"deb"), package).read_bytes() == b"deb"


@pytest.mark.proves("INV-IMAGE-1")
def test_bytes_that_are_not_the_locked_ones_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"other")
    with pytest.raises(SpineError, match="not what the lock says") as caught:
        inputs.check(file, "name", "1", hashlib.sha256(b"this").hexdigest())
    assert caught.value.exit_code == Exit.REFUSED


def test_an_input_that_is_gone_is_named_with_the_way_out(tmp_path: Path) -> None:
    package = inputs.Package("no-such-package-at-all", "1", "0" * 64, "root")
    with pytest.raises(SpineError, match="no-such-package-at-all 1") as caught:
        inputs.fetch_package(Cache(tmp_path, lambda _text: None), package)
    assert "--relock" in caught.value.fix
    assert not list((tmp_path / "packages").iterdir())

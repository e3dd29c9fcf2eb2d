"""What goes into the root, and what a production image leaves out."""

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spine import paths
from spine.image import root, trim

MANIFEST = (paths.ROOT / "organs/manifest.toml").read_bytes()


def test_the_production_manifest_is_the_manifest_without_development() -> None:
    whole = tomllib.loads(MANIFEST.decode())
    left = tomllib.loads(root.production_manifest(MANIFEST).decode())
    whole["organs"] = {
        name: stanza for name, stanza in whole["organs"].items() if stanza["image"] == "production"
    }
    assert left == whole
    assert b"operator" not in root.production_manifest(MANIFEST)


@given(
    st.dictionaries(
        st.from_regex(r"[a-z]{1,5}", fullmatch=True),
        st.sampled_from(["production", "development"]),
        max_size=5,
    )
)
def test_any_manifest_keeps_just_its_production_stanzas(organs: dict[str, str]) -> None:
    text = "# head\n\n[spine]\na = 1\n\n" + "".join(
        f"# {name}\n[organs.{name}]\nimage = '{image}'\nx = [\n  1, # one\n]\n\n[organs.{name}.m]\ny = 2\n\n"
        for name, image in organs.items()
    )
    left = root.production_manifest(text.encode()).decode()
    kept = {name for name, image in organs.items() if image == "production"}
    assert set(tomllib.loads(left).get("organs", {})) == kept
    assert root.development_organs(text.encode()) == organs.keys() - kept
    for name in organs:
        assert (f"# {name}\n" in left) == (name in kept)


@pytest.mark.proves("INV-IMAGE-3")
@pytest.mark.parametrize(
    "path",
    [
        "organs/bay0/probes.py",
        "organs/kernel/inspection.py",
        "organs/operator/organ.py",
        "organs/operator/__init__.py",
        "bus/compile.py",
        "bus/reference.py",
    ],
)
def test_production_does_not_carry_what_serves_development(path: str) -> None:
    out = root.development_organs(MANIFEST)
    assert not trim.keep_own(path, out, production=True)


def test_production_carries_the_rest() -> None:
    out = root.development_organs(MANIFEST)
    for path in ("organs/bay0/restart.py", "organs/gate/organ.py", "organs/runtime.py", "bus/wire.py"):
        assert trim.keep_own(path, out, production=True)
    assert trim.keep_own("organs/bay0/probes.py", out, production=False)
    assert not trim.keep_own("organs/manifest.toml", out, production=False)
    assert not trim.keep_own("tests/explore.py", out, production=False)


@pytest.mark.parametrize(
    ("path", "stays"),
    [
        ("os.py", True),
        ("json/decoder.py", True),
        ("sqlite3/dbapi2.py", True),
        ("encodings/utf_8.py", True),
        ("encodings/idna.py", True),
        ("encodings/cp1252.py", False),
        ("pdb.py", False),
        ("venv/__init__.py", False),
        ("idlelib/idle.py", False),
        ("distutils/ccompiler.py", False),
        ("test/support/__init__.py", False),
        ("LICENSE.txt", False),
        ("lib-dynload/_sqlite3.cpython-311-x86_64-linux-gnu.so", True),
        ("lib-dynload/_ssl.cpython-311-x86_64-linux-gnu.so", False),
        ("ssl.py", False),
        ("lib-dynload/_testcapi.cpython-311-x86_64-linux-gnu.so", False),
    ],
)
def test_the_standard_library_is_trimmed(path: str, stays: bool) -> None:
    assert trim.keep_stdlib(path) is stays


@pytest.mark.parametrize(
    ("path", "stays"),
    [
        ("trio/_core/_run.py", True),
        ("trio/_tests/test_ssl.py", False),
        ("capnp/lib/capnp.cpython-311-x86_64-linux-gnu.so", True),
        ("capnp/lib/capnp.pyx", False),
        ("capnp/includes/capnp_cpp.pxd", False),
        ("pyzmq.libs/libzmq.so.5", True),
        ("trio-0.35.0.dist-info/METADATA", False),
    ],
)
def test_wheels_are_trimmed(path: str, stays: bool) -> None:
    assert trim.keep_wheel(path) is stays

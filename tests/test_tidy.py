"""The laws of the tree, read from the syntax tree and the documents rather than from promises.

Import laws keep power where it can be audited; the invariant table keeps every promise tied to a line and a
test; the anchors keep documents from naming files that are gone. Each law is itself tested on a small wrong
tree, so that none of them always says yes.
"""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Modules of the image that run on the builder only and never ship.
BUILD_ONLY = {"bus/compile.py", "bus/reference.py"}
# What PID 1 may import besides the standard library.
BAY0_OWN = ("organs.bay0", "organs.kernel", "organs.layout", "organs.fields", "organs.manifest")
# The zygote is a process of its own and warms up what the organs share.
ZYGOTE = "organs/bay0/zygote.py"
# A pure module decides; these are all it may import.
PURE_STDLIB = {
    "__future__",
    "abc",
    "collections",
    "collections.abc",
    "dataclasses",
    "enum",
    "ipaddress",
    "math",
    "typing",
    "struct",
}
PURE = (
    "organs/fields.py",
    "organs/bay0/clock.py",
    "organs/bay0/restart.py",
    "organs/builder/furnishing.py",
    "organs/builder/verdict.py",
    "organs/gate/verdict.py",
    "organs/integrity/esp.py",
    "organs/integrity/fat.py",
    "organs/integrity/rearm.py",
    "organs/integrity/verify.py",
    "organs/kernel/bpf.py",
    "organs/kernel/numbers.py",
    "organs/kernel/roomcalls.py",
    "organs/kernel/syscalls.py",
    "organs/netroom/dhcp.py",
    "organs/netroom/lease.py",
    "organs/netroom/plan.py",
    "organs/netroom/proposal.py",
    "organs/netroom/sntp.py",
    "organs/freezer/focus.py",
    "organs/freezer/policy.py",
    "organs/operator/lines.py",
    "organs/pulse.py",
    "organs/umbilical/link.py",
    "organs/umbilical/wishes.py",
    "bus/envelope.py",
)
BANNED_CALLS = {"eval", "exec", "compile", "__import__"}
BANNED_MODULES = {"pickle", "subprocess", "marshal"}
BANNED_NAMES = re.compile(r"(^|_)(manager|helper|helpers|utils|util|misc)(_|$)", re.IGNORECASE)
KERNEL_PATHS = re.compile(r"^/(proc|sys)(/|$)")


def imports(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Each imported module of a syntax tree with its line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            module = node.module or "."
            yield module, node.lineno
            for alias in node.names:
                yield f"{module}.{alias.name}", node.lineno


def top(module: str) -> str:
    return module.split(".")[0]


def image_laws(path: str, text: str, stdlib: frozenset[str]) -> list[str]:
    """What is wrong with one module of the image. `path` is relative to the root of the tree."""
    tree = ast.parse(text)
    wrong: list[str] = []

    def law(line: int, sentence: str) -> None:
        wrong.append(f"{path}:{line}: {sentence}")

    in_kernel = path.startswith("organs/kernel/")
    for name, line in imports(tree):
        if top(name) == "ctypes" and not in_kernel:
            law(line, "ctypes lives in organs/kernel only")
        if top(name) == "zmq" and path != "bus/sockets.py":
            law(line, "zmq is imported by bus/sockets.py only")
        if top(name) == "capnp" and path != "bus/wire.py":
            law(line, "capnp is imported by bus/wire.py only")
        if top(name) in BANNED_MODULES:
            law(line, f"{top(name)} has no place in the image")
        if (
            ((path.startswith("organs/bay0/") and path != ZYGOTE) or in_kernel)
            and top(name) not in stdlib
            and not name.startswith(BAY0_OWN)
            and name != "organs"
        ):
            law(line, f"PID 1 is standard library only, not {name}")
        if (
            path in PURE
            and top(name) not in PURE_STDLIB
            and not name.startswith(tuple(m.removesuffix(".py").replace("/", ".") for m in PURE))
        ):
            law(line, f"a pure module imports {name}")
        if path.startswith("bus/") and top(name) == "organs":
            law(line, "the bus knows no organ")
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = node.func
            if isinstance(called, ast.Name) and called.id in BANNED_CALLS:
                law(node.lineno, f"{called.id}() has no place in the image")
            if isinstance(called, ast.Attribute) and called.attr == "ioctl" and not in_kernel:
                law(node.lineno, "ioctl lives in organs/kernel only")
        if (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and KERNEL_PATHS.match(node.value)
            and not in_kernel
        ):
            law(node.lineno, f"{node.value!r}: /proc and /sys are touched in organs/kernel only")
        if isinstance(node, ast.ExceptHandler) and node.type is None:
            law(node.lineno, "a bare except hides defects")
    return wrong


def image_files() -> list[str]:
    found = [
        p.relative_to(ROOT).as_posix() for folder in ("organs", "bus") for p in (ROOT / folder).rglob("*.py")
    ]
    return sorted(set(found) - BUILD_ONLY)


def stdlib_names() -> frozenset[str]:
    import sys

    return frozenset(sys.stdlib_module_names)


def test_image_laws() -> None:
    stdlib = stdlib_names()
    wrong = [w for path in image_files() for w in image_laws(path, (ROOT / path).read_text(), stdlib)]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("path", "text", "sentence"),
    [
        ("organs/gate/organ.py", "import ctypes", "ctypes lives in"),
        ("organs/gate/organ.py", "from zmq import Context", "zmq is imported by"),
        ("bus/client.py", "import capnp", "capnp is imported by"),
        ("organs/bay0/__main__.py", "import trio", "standard library only"),
        ("organs/bay0/restart.py", "import time", "pure module imports"),
        ("bus/client.py", "from organs import layout", "the bus knows no organ"),
        ("organs/gate/organ.py", "open('/proc/self/status')", "/proc and /sys"),
        ("organs/gate/organ.py", "fcntl.ioctl(3, 4)", "ioctl lives in"),
        ("organs/gate/organ.py", "eval('1')", "eval() has no place"),
        ("organs/gate/organ.py", "import subprocess", "subprocess has no place"),
        ("organs/gate/organ.py", "try:\n    pass\nexcept:\n    pass", "bare except"),
    ],
)
def test_each_image_law_bites(path: str, text: str, sentence: str) -> None:
    assert any(sentence in wrong for wrong in image_laws(path, text, stdlib_names()))


def tracked(*patterns: str) -> list[Path]:
    done = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "--", *patterns],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [ROOT / line for line in done.stdout.splitlines() if (ROOT / line).exists()]


def test_no_vague_names() -> None:
    vague = [
        str(p) for p in tracked("*.py") if any(BANNED_NAMES.search(part.split(".")[0]) for part in p.parts)
    ]
    assert not vague


DECLARED = re.compile(r"^\| (INV-[A-Z]+-\d+) \|", re.MULTILINE)
KEPT = re.compile(r"(?:#|/\*) (INV-[A-Z]+-\d+)")
PROVED = re.compile(r"""proves\(\s*["'](INV-[A-Z]+-\d+)["']""")


def invariant_problems(declared: set[str], kept: set[str], proved: set[str]) -> list[str]:
    """The three halves of a promise must all be there."""
    return [
        *(f"{i}: no line keeps it" for i in sorted(declared - kept)),
        *(f"{i}: no test proves it" for i in sorted(declared - proved)),
        *(f"{i}: not in docs/invariants.md" for i in sorted((kept | proved) - declared)),
    ]


def test_every_promise_has_its_line_and_its_test() -> None:
    here = Path(__file__).name
    declared = DECLARED.findall((ROOT / "docs/invariants.md").read_text())
    assert len(declared) == len(set(declared))
    sources = [p for p in tracked("*.py", "*.sh", "*.c", "spine") if "tests" not in p.relative_to(ROOT).parts]
    tests = [p for p in tracked("tests/*.py") if p.name != here]
    kept = {i for p in sources for i in KEPT.findall(p.read_text())}
    proved = {i for p in tests for i in PROVED.findall(p.read_text())}
    assert not invariant_problems(set(declared), kept, proved)


def test_the_promise_law_bites() -> None:
    assert len(invariant_problems({"INV-A-1"}, {"INV-B-1"}, {"INV-C-1"})) == 4


ANCHOR = re.compile(r"`((?:organs|bus|schemas|spine-image|personas|tests|docs)/[\w./-]+)`")


def test_documents_name_files_that_exist() -> None:
    gone = [
        f"{p.relative_to(ROOT)}: {name}"
        for p in tracked("*.md")
        for name in ANCHOR.findall(p.read_text())
        if "NAME" not in name and not (ROOT / name.rstrip("/.")).exists()
    ]
    assert not gone, "\n".join(gone)


TOP_LEVEL = {
    *("organs", "bus", "schemas", "spine-image", "personas", "tests", "docs"),
    *("pyproject.toml", "README.md", "LICENSE", "spine", ".ci", ".gitignore"),
}


def test_nothing_new_at_the_top() -> None:
    assert {p.relative_to(ROOT).parts[0] for p in tracked(".")} <= TOP_LEVEL


def test_every_module_says_what_it_is_for() -> None:
    silent = [
        str(p.relative_to(ROOT))
        for p in tracked("*.py")
        if p.name != "__init__.py" and not ast.get_docstring(ast.parse(p.read_text()))
    ]
    assert not silent

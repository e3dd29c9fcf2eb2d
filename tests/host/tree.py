"""A copy of the host's part of the tree with an empty list of Python packages, for tests of the launcher."""

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# A verb that says which Python runs it, and with what.
PROBE = '''"""A verb for tests."""
import sys
HELP = "for tests"
def add_arguments(parser):
    parser.add_argument("words", nargs="*")
def run(args):
    print(sys.prefix)
    print(*args.words, sep="|")
    return 0
'''


@dataclass
class Tree:
    """The copy, in a directory whose name has a space, with an XDG cache and PATH of its own."""

    root: Path
    home: Path
    path: str

    @property
    def cache(self) -> Path:
        return self.home / ".cache" / "alpine-spine"

    @property
    def lock(self) -> Path:
        return self.root / "spine-image" / "python.lock"

    def environment(self, **more: str) -> dict[str, str]:
        return {"HOME": str(self.home), "PATH": self.path, "LANG": "C.UTF-8", **more}

    def spine(
        self,
        *words: str,
        cwd: Path | None = None,
        program: Path | None = None,
        env: dict[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run the launcher to its end."""
        return subprocess.run(
            [program or self.root / "spine", *words],
            cwd=cwd or self.home,
            env=self.environment() if env is None else env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    def start(self, *words: str) -> "subprocess.Popen[str]":
        """Run the launcher beside the test."""
        return subprocess.Popen(
            [self.root / "spine", *words],
            cwd=self.home,
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def venvs(self) -> list[str]:
        """What lies in the cache of Python packages, links marked with their target."""
        found = self.cache.glob("venv-*") if self.cache.is_dir() else []
        return sorted(f"{p.name} -> {os.readlink(p)}" if p.is_symlink() else p.name for p in found)

    def fake(self, name: str, script: str) -> None:
        """Put a program of this name before all others."""
        directory = self.home / "bin"
        directory.mkdir(exist_ok=True)
        (directory / name).write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
        (directory / name).chmod(0o755)
        self.path = f"{directory}:{os.environ['PATH']}"


def make(directory: Path) -> Tree:
    """A new tree below a directory."""
    root, home = directory / "a tree", directory / "home"
    home.mkdir()
    shutil.copytree(
        ROOT / "spine-image" / "spine",
        root / "spine-image" / "spine",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    shutil.copytree(ROOT / "bus", root / "bus", ignore=shutil.ignore_patterns("__pycache__"))
    # What the host shares with the image: the format of a persona.
    (root / "organs" / "integrity").mkdir(parents=True)
    for name in ("__init__.py", "fields.py", "persona.py", "integrity/__init__.py", "integrity/ed25519.py"):
        shutil.copy(ROOT / "organs" / name, root / "organs" / name)
    (root / "spine-image" / "spine" / "verbs" / "probe.py").write_text(PROBE, encoding="utf-8")
    shutil.copy(ROOT / "spine", root / "spine")
    tree = Tree(root, home, os.environ["PATH"])
    tree.lock.write_text("# no packages\n", encoding="utf-8")
    return tree


def remake(tree: Tree) -> Tree:
    """The same tree as if it were new, but for the Python packages that are set up."""
    shutil.rmtree(tree.home / "bin", ignore_errors=True)
    for stamp in tree.cache.glob("packages-*"):
        stamp.unlink()
    tree.lock.write_text("# no packages\n", encoding="utf-8")
    return Tree(tree.root, tree.home, os.environ["PATH"])

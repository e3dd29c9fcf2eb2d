"""Has kernel-hardening-checker, a program of others, judge both kernels; writes docs/evidence/hardening.json.

`python -m tests.image.judge PROGRAM`: PROGRAM is its `bin/kernel-hardening-checker`; not in this tree
and is not fetched. Judges the built configurations, the command line and the sysctls that are set by it. What
the kernel sets by itself the program cannot see; it counts those as failed (docs/hardening.md does not).
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from spine import paths
from spine.image import kernel, parameters
from spine.image.build import build
from spine.progress import Progress
from tests.fire.evidence import commit, covered

EVIDENCE = paths.ROOT / "docs/evidence/hardening.json"
COVERED = ("spine-image/spine/image",)
COMMAND = "python -m tests.image.judge PROGRAM"


def judged(program: Path, config: Path) -> list[dict[str, object]]:
    """The program's verdicts on one kernel."""
    with tempfile.TemporaryDirectory() as directory:
        line, settings = Path(directory) / "cmdline", Path(directory) / "sysctl"
        line.write_text(" ".join(parameters.words()) + "\n")
        settings.write_text("".join(f"{name} = {value}\n" for name, value in parameters.SYSCTLS.items()))
        words: list[str | Path] = [program, "-m", "json", "-c", config, "-l", line, "-s", settings]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
    verdicts = json.loads(done.stdout)
    assert isinstance(verdicts, list)
    return verdicts


def counts(verdicts: Sequence[dict[str, object]]) -> dict[str, object]:
    """How many are followed, per kind, and which are not."""
    ok = Counter(str(row["type"]) for row in verdicts if row["check_result_bool"])
    total = Counter(str(row["type"]) for row in verdicts)
    failed = [f"{row['type']} {row['option_name']}" for row in verdicts if not row["check_result_bool"]]
    weighty = [
        row for row in verdicts if row["type"] == "kconfig" and row["decision"] in ("defconfig", "kspp")
    ]
    return {
        **{kind: {"ok": ok[kind], "of": total[kind]} for kind in sorted(total)},
        "failed in defconfig and kspp": sum(not row["check_result_bool"] for row in weighty),
        "failed": sorted(failed),
    }


def main(words: Sequence[str]) -> int:
    """Build both, have them judged, write the evidence."""
    program = Path(words[0]).resolve()
    sources = sorted((program.parents[1] / "kernel_hardening_checker").glob("*.py"))
    version = subprocess.run(
        [program, "--version"], capture_output=True, text=True, check=True
    ).stdout.strip()
    kernels = {}
    for profile in kernel.PROFILES:
        build(paths.out(profile), profile=profile, progress=Progress())
        lines = kernel.merged(profile, lambda path: (paths.ROOT / path).read_text())
        kernels[profile] = {
            "options sha256": hashlib.sha256(lines.encode()).hexdigest(),
            **counts(judged(program, paths.out(profile) / "kernel.config")),
        }
    document = {
        "command": COMMAND,
        "commit": commit(COVERED),
        "covered": {"paths": list(COVERED), "sha256": covered(COVERED)},
        "judge": {
            "program": "kernel-hardening-checker",
            "version": version,
            "sha256": hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest(),
        },
        "kernels": kernels,
    }
    EVIDENCE.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Starts rooms of a contender when it is asked to, and says how long until each of them was heard.

In a mount namespace of its own, in which /sys/fs/cgroup is version 2 alone (the runtimes refuse one that is
mixed) and /run/systemd is empty. Asked with `words` (a command line for each room) and `ends` (one to end
it, or none); the answer has the milliseconds from the first start until the last room was heard.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time

SAID = b"begun"
ENDING_S = 10.0


def main() -> None:
    """Prepare, then answer."""
    for words in (
        ["mount", "--make-rprivate", "/"],
        *([["mount", "--bind", sys.argv[1], "/sys/fs/cgroup"]] if sys.argv[1] != "/sys/fs/cgroup" else []),
        ["mount", "-t", "tmpfs", "tmpfs", "/run"],
    ):
        subprocess.run(words, check=True)
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        question = json.loads(line)
        for path in question["drop"]:
            drop(path)
        print(json.dumps(started(question["words"], question["ends"])), flush=True)


def drop(path: str) -> None:
    """Forget what is kept in memory of a file."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


def started(rooms: list[list[str]], ends: list[list[str]]) -> dict[str, object]:
    """All at once; how long until the last one was heard. They are ended before this returns."""
    running = []
    with tempfile.TemporaryFile() as said:
        began = time.perf_counter()
        try:
            for words in rooms:
                reading, writing = os.pipe()
                running.append(
                    (
                        subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=writing, stderr=said),
                        reading,
                    )
                )
                os.close(writing)
            silent = 0
            for _, reading in running:
                heard = b""
                while SAID not in heard:
                    more = os.read(reading, 4096)
                    if not more:
                        silent += 1
                        break
                    heard += more
            took = 1000 * (time.perf_counter() - began)
        finally:
            for words in ends:
                subprocess.run(words, check=False, stdout=said, stderr=said, timeout=ENDING_S)
            for process, reading in running:
                if not ends:
                    process.terminate()
                try:
                    process.wait(ENDING_S)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
                os.close(reading)
        if silent:
            said.seek(0)
            lines = said.read().decode(errors="replace").strip().splitlines()
            return {"failed": lines[0][:200] if lines else f"{silent} of {len(rooms)} rooms said nothing"}
    return {"ms": took}


if __name__ == "__main__":
    main()

"""The client in the room: the program that ships against the real umbilical, and the same source under
sanitizers against every wrong answer.

The socket's path is compiled in. For tests it is `umbilical.sock`, below the directory the program is run in.
"""

from __future__ import annotations

import os
import random
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from organs.umbilical import wishes
from spine.persona import programs
from tests.bus.wiring import own_schemas
from tests.integrity.test_update import new
from tests.umbilical.test_umbilical_organ import Spine, open_room, spine, until

PATIENCE_S = 60
HERE = '-DSOCKET_PATH="umbilical.sock"'
SEED = 20260101
SANITIZED = ("-g", "-O1", "-DHOSTED", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
VALUE_MAX = 1024 * 1024
# What a sanitizer's report, and a signal, would end it with.
HONEST_EXITS = {0, 1, 4, 5, 7}


def compiled(directory: Path, *flags: str, without: bytes = b"") -> Path:
    source = directory / "umbilical.c"
    text = programs.source("umbilical")
    assert without in text
    source.write_bytes(text.replace(without, b";", 1) if without else text)
    command = ["gcc", *flags, HERE, "-o", str(directory / "umbilical"), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    return directory / "umbilical"


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As it ships, but for the socket."""
    return compiled(tmp_path_factory.mktemp("client"), *programs.FLAGS)


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same source, with each access checked."""
    return compiled(tmp_path_factory.mktemp("watched"), "-std=c11", *SANITIZED)


# ---- against the real organ ------------------------------------------------------------------------------


@dataclass
class Done:
    code: int
    out: bytes
    err: str


async def run(client: Path, held: Spine, room: str, *words: str | bytes, given: bytes = b"") -> Done:
    """The client in a directory whose `umbilical.sock` is the room's."""
    directory = held.folder / f"in-{room}"
    if not directory.exists():
        directory.mkdir()
        (directory / "umbilical.sock").symlink_to(held.folder / f"{room}.sock")
    with trio.fail_after(PATIENCE_S):
        done = await trio.run_process(
            [client, *words],
            stdin=given,
            cwd=directory,
            check=False,
            capture_stdout=True,
            capture_stderr=True,
        )
    return Done(done.returncode, done.stdout, done.stderr.decode())


@pytest.mark.container
async def test_every_verb_against_the_spine(client: Path, tmp_path: Path) -> None:
    async with spine(tmp_path) as held:
        await open_room(held, "linda")

        async def ask(*words: str | bytes, given: bytes = b"") -> Done:
            return await run(client, held, "linda", *words, given=given)

        assert await ask("put", "greeting", given=b"hello\0\n") == Done(0, b"", "")
        assert await ask("get", "greeting") == Done(0, b"hello\0\n", "")
        assert await ask("put", "empty") == Done(0, b"", "")
        assert await ask("get", "empty") == Done(0, b"", "")
        assert await ask("put", b"\xff\\ \n", given=b"x") == Done(0, b"", "")
        assert await ask("list") == Done(0, b"empty\ngreeting\n\\xff\\x5c \\x0a\n", "")
        assert await ask("list", "empty") == Done(0, b"greeting\n\\xff\\x5c \\x0a\n", "")
        status = await ask("status")
        assert (status.code, status.out.splitlines()[0]) == (0, b"persona linda")
        assert await ask("delete", "greeting") == Done(0, b"", "")
        again = await ask("delete", "greeting")
        assert (again.code, again.out) == (4, b"")
        gone = await ask("get", "greeting")
        assert (gone.code, gone.out) == (4, b"")
        assert gone.err.startswith("umbilical: get: there is no such thing")
        assert gone.err.count("\n") == 1
        focus = await ask("focus", "nobody")
        assert (focus.code, held.lines.asked) == (4, [("linda", "nobody")])
        assert "there is no such room" in focus.err


@pytest.mark.container
async def test_an_update_goes_out_of_the_room(client: Path, tmp_path: Path) -> None:
    block, whole = new()
    update = tmp_path / "new.update"
    update.write_bytes(b"SPINE-UPDATE-1\0\0" + block + whole)
    async with spine(tmp_path) as held:
        held.lines.may_update.add("linda")
        for room in ("linda", "courier"):
            await open_room(held, room)
        held.nursery.start_soon(held.updates.updates.run)
        done = await run(client, held, "linda", "update", str(update))
        assert done == Done(0, b"slot b has 2 now; it runs after the next start\n", "")
        assert held.updates.written == [whole]
        refused = await run(client, held, "courier", "update", str(update))
        assert (refused.code, refused.err) == (
            5,
            "umbilical: update: refused: this persona has not the grant update\n",
        )
        for wrong in (b"", b"SPINE-UPDATE-1\0\0", bytes(100_000), update.read_bytes()[: 16 + 16384]):
            (tmp_path / "wrong").write_bytes(wrong)
            found = await run(client, held, "linda", "update", str(tmp_path / "wrong"))
            assert (found.code, found.err) == (5, "umbilical: update: that file is no update\n")
        for wrong, why in ((whole[:-4096], "truncated"), (b"x" + whole[1:], "altered")):
            (tmp_path / "wrong").write_bytes(b"SPINE-UPDATE-1\0\0" + block + wrong)
            found = await run(client, held, "linda", "update", str(tmp_path / "wrong"))
            assert found.code == 5
            assert found.err.startswith(f"umbilical: update: refused: {why}: ")
        assert (await run(client, held, "linda", "update", str(tmp_path))).code == 1, "no file but a folder"
        assert (await run(client, held, "linda", "update", str(tmp_path / "absent"))).code == 1
        assert held.updates.written == [whole]
        done = await run(client, held, "linda", "update", str(update), "reboot")
        assert done == Done(0, b"slot b has 2 now; the machine starts anew with it\n", "")
        await until(lambda: held.updates.reboots == 1)


@pytest.mark.container
async def test_the_largest_value_and_key(client: Path, tmp_path: Path) -> None:
    value, key = os.urandom(VALUE_MAX), b"k" * 1024
    async with spine(tmp_path) as held:
        await open_room(held, "linda")
        assert (await run(client, held, "linda", "put", key, given=value)).code == 0
        assert (await run(client, held, "linda", "get", key)).out == value
        seen = held.links("linda").requests
        for words, given, code in (
            (["put", "k"], value + b"x", 5),
            (["put", key + b"k"], b"", 2),
            (["put", ""], b"", 2),
            (["focus", "x" * 65], b"", 2),
        ):
            assert (await run(client, held, "linda", *words, given=given)).code == code
        assert held.links("linda").requests == seen, "nothing of that travelled"


@pytest.mark.container
async def test_many_keys_come_in_pages(client: Path, tmp_path: Path) -> None:
    async with spine(tmp_path) as held:
        await open_room(held, "linda")
        names = [f"key{number:04}" for number in range(600)]
        async with trio.open_nursery() as nursery:
            limit = trio.CapacityLimiter(3)

            async def put(name: str) -> None:
                async with limit:
                    assert (await run(client, held, "linda", "put", name, given=b"v")).code == 0

            for name in names:
                nursery.start_soon(put, name)
        assert (await run(client, held, "linda", "list")).out.decode().splitlines() == names


# ---- against a spine that says anything ------------------------------------------------------------------


class Liar:
    """Takes one connection after the other, reads a request, says what it is told to say, and closes."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.say: Callable[[bytes], bytes] = lambda _request: b""
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(directory / "umbilical.sock"))
        self._listener.listen(8)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(PATIENCE_S)
        self._listener.close()

    def _run(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with client:
                try:
                    while request := client.recv(65536):
                        client.sendall(self.say(request))
                        # A client that waits for more must be told that there is none.
                        client.shutdown(socket.SHUT_WR)
                except OSError:
                    continue

    def told(self, client: Path, say: bytes | Callable[[bytes], bytes], *words: str) -> Done:
        self.say = say if callable(say) else lambda _request: say
        done = subprocess.run(
            [client, *(words or ("get", "k"))],
            cwd=self.directory,
            input=b"",
            capture_output=True,
            timeout=PATIENCE_S,
            check=False,
        )
        return Done(done.returncode, done.stdout, done.stderr.decode(errors="replace"))


@pytest.fixture
def liar(tmp_path: Path) -> Iterator[Liar]:
    made = Liar(tmp_path)
    yield made
    made.close()


def response(**fields: object) -> bytes:
    return own_schemas().messages["umbilical.Response"].encode({**wishes.EMPTY, "id": 1, **fields})


def frame(*segments: bytes) -> bytes:
    """Segments in a frame; each of whole words."""
    sizes = [len(segment) // 8 for segment in segments]
    table = struct.pack(f"<I{len(sizes)}I", len(sizes) - 1, *sizes)
    return table + bytes(-len(table) % 8) + b"".join(segments)


def words(*numbers: int) -> bytes:
    return struct.pack(f"<{len(numbers)}Q", *numbers)


def far(segment: int, word: int, double: int = 0) -> int:
    return segment << 32 | word << 3 | double << 2 | 2


def struct_pointer(offset: int, data: int, pointers: int) -> int:
    return pointers << 48 | data << 32 | (offset & 0x3FFFFFFF) << 2


def list_pointer(offset: int, size: int, count: int) -> int:
    return count << 35 | size << 32 | (offset & 0x3FFFFFFF) << 2 | 1


CODES: Mapping[str, int] = {
    **dict.fromkeys(("badMessage", "unknownMethod", "stale", "internal", "corrupt"), 1),
    **dict.fromkeys(("notFound", "unknown"), 4),
    **dict.fromkeys(("forbidden", "tooLarge", "busy", "invalid", "refused", "quota", "full", "throttled"), 5),
    **dict.fromkeys(("deadline", "peerDied", "frozen"), 7),
}


def test_each_code_has_its_exit(client: Path, liar: Liar) -> None:
    field = next(each for each in own_schemas().messages["umbilical.Response"].fields if each.name == "code")
    assert set(field.type.names) == {"ok", *CODES}
    for code, expected in CODES.items():
        done = liar.told(client, response(code=code, message="because\n\x1b[31m"))
        assert (done.code, done.out) == (expected, b"")
        assert done.err.endswith(": because\\x0a\\x1b[31m\n")
        assert done.err.count("\n") == 1
    newer = bytearray(response(code="ok"))
    newer[8 + 8 + 8] = 200  # frame, root pointer, id: the code
    assert liar.told(client, bytes(newer)).code == 1


def test_news_is_passed_over(client: Path, liar: Liar) -> None:
    news = own_schemas().messages["umbilical.Response"].encode(wishes.thawed(10**9))
    done = liar.told(client, news * 3 + response(value=b"v"))
    assert (done.code, done.out) == (0, b"v")
    assert liar.told(client, news * 2000).code == 1, "but not for ever"


def test_a_spine_that_goes_away(client: Path, liar: Liar, tmp_path: Path) -> None:
    whole = response(value=b"v" * 100)
    for cut in range(len(whole)):
        done = liar.told(client, whole[:cut])
        assert (done.code, done.out) == (7, b"")
    (tmp_path / "elsewhere").mkdir()
    done = Done(*_run(client, tmp_path / "elsewhere", "status"))
    assert done.code == 3
    assert "cannot be reached" in done.err


def _run(client: Path, directory: Path, *given: str) -> tuple[int, bytes, str]:
    done = subprocess.run([client, *given], cwd=directory, capture_output=True, check=False, input=b"")
    return done.returncode, done.stdout, done.stderr.decode()


@pytest.mark.parametrize(
    "given",
    [
        (),
        ("frob",),
        ("get",),
        ("get", "a", "b"),
        ("status", "x"),
        ("list", "a", "b"),
        ("focus", ""),
        ("update",),
        ("update", "f", "now"),
    ],
)
def test_wrong_words_are_usage(client: Path, tmp_path: Path, given: tuple[str, ...]) -> None:
    code, out, err = _run(client, tmp_path, *given)
    assert (code, out) == (2, b"")
    assert err.startswith("umbilical: ")
    assert err.count("\n") == 1


def test_help_tells_the_verbs_and_the_codes(client: Path, tmp_path: Path) -> None:
    code, out, err = _run(client, tmp_path, "--help")
    assert (code, err) == (0, "")
    for verb in ("put", "get", "delete", "list", "status", "focus", "update"):
        assert f"\n  {verb} ".encode() in out
    assert b"7 nobody knows" in out


def test_segments_and_far_pointers_are_read(watched: Path, liar: Liar) -> None:
    """The same answer in every shape that the format allows."""
    text = b"value in a far place"
    padded = text + bytes(-len(text) % 8)
    data = words(1, 0)
    value = list_pointer(0, 2, len(text))
    shapes = {
        # root and value in one segment; the value's pointer is the second of two
        "plain": frame(words(struct_pointer(0, 2, 2)) + data + words(0, value) + padded),
        "single far": frame(
            words(struct_pointer(0, 2, 2)) + data + words(0, far(1, 1)), words(0, value) + padded
        ),
        "double far": frame(
            words(struct_pointer(0, 2, 2)) + data + words(0, far(1, 0, 1)),
            words(far(2, 1), value),
            words(0) + padded,
        ),
        "far root": frame(words(far(1, 0)), words(struct_pointer(0, 2, 2)) + data + words(0, value) + padded),
        "behind": frame(
            words(struct_pointer(3, 2, 2)) + padded + data + words(0, list_pointer(-7, 2, len(text)))
        ),
        "far segment": frame(*[b""] * 62, words(0, value) + padded)[:0]
        or frame(
            words(far(63, 0)), *[b""] * 62, words(struct_pointer(0, 2, 2)) + data + words(0, value) + padded
        ),
    }
    for name, message in shapes.items():
        done = liar.told(watched, message)
        assert (name, done.code, done.out, done.err) == (name, 0, text, "")


HOSTILE = {
    "no words": frame(b""),
    "null root": frame(words(0)),
    "list root": frame(words(list_pointer(0, 2, 8), 0)),
    "capability root": frame(words(3)),
    "struct past the end": frame(words(struct_pointer(0, 2, 2), 1, 0)),
    "struct before the start": frame(words(struct_pointer(-2, 2, 0), 1, 0)),
    "largest offset": frame(words(struct_pointer(0x1FFFFFFF, 0xFFFF, 0xFFFF))),
    "smallest offset": frame(words(struct_pointer(-0x20000000, 0xFFFF, 0xFFFF))),
    "largest list": frame(words(struct_pointer(0, 2, 2), 1, 0, 0, list_pointer(0, 2, 0x1FFFFFFF))),
    "list of words": frame(words(struct_pointer(0, 2, 2), 1, 0, 0, list_pointer(0, 5, 1), 0)),
    "text without end": frame(words(struct_pointer(0, 2, 2), 1, 12, list_pointer(1, 2, 8), 0, 2**64 - 1)),
    "far to itself": frame(words(far(0, 0))),
    "far to far": frame(words(far(0, 1), far(0, 0))),
    "far out": frame(words(far(7, 0))),
    "far past": frame(words(far(0, 0x1FFFFFFF))),
    "double far to itself": frame(words(far(0, 0, 1), far(0, 0, 1))),
    "double far past": frame(words(far(0, 0, 1))),
    "double far with an offset": frame(words(far(0, 1, 1), far(0, 0), struct_pointer(1, 0, 0))),
    "double far to nowhere": frame(words(far(0, 1, 1), far(9, 9), struct_pointer(0, 9, 9))),
    "double far capability": frame(words(far(0, 1, 1), far(0, 0), 3)),
    "keys far too many": frame(words(struct_pointer(0, 2, 3), 1, 0, 0, 0, list_pointer(0, 6, 0x1FFFFFFF))),
    "keys composite": frame(words(struct_pointer(0, 2, 3), 1, 0, 0, 0, list_pointer(0, 7, 1), 0, 0)),
    "key is the list": frame(
        words(struct_pointer(0, 2, 3), 1, 0, 0, 0, list_pointer(0, 6, 1), list_pointer(-1, 6, 1))
    ),
    "key empty": frame(words(struct_pointer(0, 2, 3), 1, 0, 0, 0, list_pointer(0, 6, 1), 0)),
    "more of nothing": frame(words(struct_pointer(0, 2, 3), 1, 1 << 17, 0, 0, 0)),
    "another's answer": frame(words(struct_pointer(0, 2, 0), 2, 0)),
    "64 segments more": struct.pack("<I", 64) + bytes(4 * 65),
    "most segments": struct.pack("<I", 0xFFFFFFFF) + bytes(100),
    "largest segment": struct.pack("<II", 0, 0xFFFFFFFF) + bytes(100),
    "sizes that run over": struct.pack("<IIII", 1, 0x80000000, 0x80000000, 0) + bytes(100),
    "one word too many": struct.pack("<II", 0, (VALUE_MAX + 64 * 1024) // 8 + 1)
    + bytes(VALUE_MAX + 70 * 1024),
    "http": b"HTTP/1.1 400 Bad Request\r\n\r\n" * 10,
}


@pytest.mark.proves("INV-PERSONA-23")
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_answer_is_refused(watched: Path, liar: Liar, name: str) -> None:
    verb = ("list",) if name.startswith(("key", "more")) else ("get", "k")
    done = liar.told(watched, HOSTILE[name], *verb)
    assert done.code in {1, 7}, done
    assert done.err.startswith(f"umbilical: {verb[0]}: "), done
    assert done.err.count("\n") == 1
    assert done.out == b""


def test_keys_that_do_not_grow_end_the_list(watched: Path, liar: Liar) -> None:
    for keys in ([b"a", b"a"], [b"b", b"a"], [b"aa", b"a"]):
        done = liar.told(watched, response(keys=keys), "list")
        assert (done.code, done.err) == (1, "umbilical: list: the answer cannot be read\n")
    page = [b"%04d" % number for number in range(257)]
    assert liar.told(watched, response(keys=page), "list").code == 1, "more than was asked for"
    assert liar.told(watched, response(keys=page[1:]), "list").code == 0
    # The same page for ever: what comes must be greater than what was there.
    pages = [response(id=number, keys=[b"a"], more=True) for number in range(1, 5)]
    done = liar.told(watched, b"".join(pages), "list")
    assert (done.code, done.out) == (1, b"a\n")
    assert done.err == "umbilical: list: the answer cannot be read\n"


@pytest.mark.proves("INV-PERSONA-23")
def test_changed_answers_never_crash_it(watched: Path, liar: Liar) -> None:
    """Real answers with random words put in, and random bytes; each access is checked by the sanitizers."""
    chance = random.Random(SEED)
    answers = {
        ("get", "k"): response(value=b"v" * 50, seq=7),
        ("list",): response(keys=[b"a", b"bb", b"c" * 20], more=True),
        ("status",): response(persona="linda", usedBytes=1, quotaBytes=2),
        ("update", "good.update"): response(ticket=7, slot="b", version="2"),
        ("delete", "k"): response(code="refused", message="no"),
    }
    shapes: list[Callable[[], int]] = [
        lambda: struct_pointer(chance.randrange(-20, 20), chance.randrange(9), chance.randrange(9)),
        lambda: list_pointer(chance.randrange(-20, 20), chance.randrange(8), chance.randrange(60)),
        lambda: far(chance.randrange(3), chance.randrange(20), chance.randrange(2)),
        lambda: chance.getrandbits(64),
        lambda: 0,
    ]
    seen: set[int] = set()
    for number in range(600):
        asked, good = chance.choice(list(answers.items()))
        body = bytearray(good[8:])
        for _ in range(chance.randrange(1, 4)):
            at = chance.randrange(len(body) // 8) * 8
            body[at : at + 8] = words(chance.choice(shapes)())
        middle = chance.randrange(len(body) // 8 + 1) * 8
        said = (
            frame(bytes(body)),
            frame(bytes(body[:middle]), bytes(body[middle:])),
            chance.randbytes(chance.randrange(200)),
        )[number % 3]
        done = liar.told(watched, said, *asked)
        assert done.code in HONEST_EXITS, (number, asked, said.hex(), done)
        assert done.err.count("\n") <= 1, (number, asked, said.hex(), done)
        seen.add(done.code)
    assert {0, 1, 7} <= seen, "the answers reach every part"


@pytest.mark.parametrize(
    ("without", "name"),
    [
        (b"nonsense(); /* INV-PERSONA-23 */", "largest list"),
        (b"nonsense(); /* INV-PERSONA-23 */", "struct past the end"),
        (b"if (words > (sizeof message - all) / WORD) nonsense();", "one word too many"),
    ],
)
def test_the_sanitizers_bite(tmp_path: Path, liar: Liar, without: bytes, name: str) -> None:
    """Without one of its checks the client is ended by the sanitizer: so the tests above would see it."""
    (tmp_path / "seeded").mkdir()
    # What the check guards must still be a statement.
    seeded = compiled(tmp_path / "seeded", "-std=c11", *SANITIZED, "-Wno-empty-body", without=without)
    done = liar.told(seeded, HOSTILE[name])
    assert "AddressSanitizer" in done.err or "runtime error" in done.err


# ---- what it is ------------------------------------------------------------------------------------------


def test_it_is_small_needs_nothing_and_is_the_same_each_time(tmp_path: Path) -> None:
    made = []
    for name in ("one", "another place"):
        (tmp_path / name).mkdir()
        made.append(programs.compile_program("umbilical", programs.source("umbilical"), tmp_path / name))
    assert made[0] == made[1]
    assert len(made[0]) < 50_000
    assert str(tmp_path).encode() not in made[0]
    assert b"/run/umbilical" in made[0]
    file = tmp_path / "umbilical"
    file.write_bytes(made[0])
    headers = subprocess.run(["readelf", "-lW", file], capture_output=True, text=True, check=True).stdout
    assert "INTERP" not in headers
    assert "DYNAMIC" not in headers
    # No part of it can be written to and run.
    assert not [line for line in headers.splitlines() if "RWE" in line or "WE " in line]

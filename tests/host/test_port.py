"""The client of the operator's port, against a small real server that does whatever a test tells it to."""

import base64
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bus.envelope import Code, Envelope, Failure, Kind, pack, pack_failure, unpack
from spine.errors import Exit, SpineError
from spine.ground import port as ports
from spine.ground.port import Port, PortFailure

# What the server answers to a message: raw bytes, sent as they are; None closes the connection.
Answer = Callable[[Envelope], bytes | None]


def line(envelope: Envelope) -> bytes:
    return base64.b64encode(pack(envelope)) + b"\n"


def hello(asked: Envelope, generation: int = 7) -> bytes:
    return line(Envelope(kind=Kind.HELLO, id=asked.id, generation=generation))


def polite(asked: Envelope) -> bytes:
    """What an operator would say: it echoes the body."""
    if asked.kind is Kind.HELLO:
        return hello(asked)
    return line(Envelope(kind=Kind.REPLY, id=asked.id, body=asked.body))


class Server:
    """One client after the other; `seen` are the messages, `garbled` the lines that were none."""

    def __init__(self, path: Path, answer: Answer, first: bytes = b"") -> None:
        self.path, self.seen, self.garbled = path, list[Envelope](), 0
        self._answer, self._first = answer, first
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(8)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)
        self._listener.close()

    def _run(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with client, client.makefile("rb") as stream:
                client.sendall(self._first)
                for raw in stream:
                    if not raw.strip():
                        continue
                    try:
                        asked = unpack(base64.b64decode(raw.strip(), validate=True))
                    except ValueError:
                        self.garbled += 1
                        continue
                    self.seen.append(asked)
                    said = self._answer(asked)
                    if said is None:
                        break
                    try:
                        client.sendall(said)
                    except OSError:
                        break


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def start(answer: Answer = polite, first: bytes = b"") -> Server:
        servers.append(Server(tmp_path / f"s{len(servers)}", answer, first))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def call(path: Path) -> dict[str, object]:
    with Port(path) as port:
        return port.call("gate.get", {"persona": "linda", "key": b"k"}, timeout_s=20)


def reply(values: dict[str, object]) -> Answer:
    def answer(asked: Envelope) -> bytes:
        if asked.kind is Kind.HELLO:
            return hello(asked)
        method = ports.schemas().method(asked.interface, asked.ordinal)
        assert method is not None
        return line(Envelope(kind=Kind.REPLY, id=asked.id, body=method.encode_results(values)))

    return answer


def failing(failure: Failure) -> Answer:
    return lambda asked: (
        hello(asked)
        if asked.kind is Kind.HELLO
        else line(Envelope(kind=Kind.FAILURE, id=asked.id, body=pack_failure(failure)))
    )


def test_a_call_is_asked_and_answered(serve: Callable[..., Server]) -> None:
    server = serve(reply({"value": b"v" * 1_000_000, "seq": 3}))
    assert call(server.path) == {"value": b"v" * 1_000_000, "seq": 3}
    asked = server.seen[-1]
    assert asked.kind is Kind.CALL
    assert asked.generation == 7
    assert 0 < asked.deadline_ns <= 20 * 10**9


def test_what_was_left_in_the_stream_is_not_ours(serve: Callable[..., Server]) -> None:
    # The tail of an answer cut in two, a whole answer to somebody else, a hello to somebody else, nonsense.
    rest = pack(Envelope(kind=Kind.REPLY, id=1, body=b"old"))
    stale = (
        base64.b64encode(rest)[7:]
        + b"\n"
        + line(Envelope(kind=Kind.REPLY, id=2))
        + hello(Envelope(kind=Kind.HELLO, id=3), generation=99)
    )
    server = serve(reply({"value": b"", "seq": 1}), first=stale + b"\xff\xfe nonsense \n")
    assert call(server.path)["seq"] == 1
    assert server.seen[-1].generation == 7


def test_answers_to_calls_that_gave_up_are_skipped(serve: Callable[..., Server]) -> None:
    real = reply({"value": b"", "seq": 5})

    def answer(asked: Envelope) -> bytes | None:
        said = real(asked)
        if asked.kind is Kind.CALL:
            said = line(Envelope(kind=Kind.REPLY, id=asked.id ^ 1)) + hello(asked) + (said or b"")
        return said

    assert call(serve(answer).path)["seq"] == 5


@pytest.mark.parametrize("code", Code)
def test_each_failure_has_its_exit_code(serve: Callable[..., Server], code: Code) -> None:
    server = serve(failing(Failure(code, "because")))
    with pytest.raises(PortFailure) as raised:
        call(server.path)
    error = raised.value
    assert error.failure.code is code
    assert error.why == "because"
    assert error.fix
    assert error.exit_code == ports.EXITS.get(code, Exit.FAILED)
    assert error.code == code.name.lower().replace("_", "-")


def test_a_port_that_closes_is_told(serve: Callable[..., Server]) -> None:
    server = serve(lambda asked: hello(asked) if asked.kind is Kind.HELLO else None)
    with pytest.raises(SpineError, match="broke") as raised:
        call(server.path)
    assert raised.value.code == "peer-died"


def test_silence_ends_at_the_deadline(serve: Callable[..., Server]) -> None:
    server = serve(lambda _asked: b"")
    with pytest.raises(SpineError, match="does not answer") as raised:
        Port(server.path, deadline_s=0.05)
    assert raised.value.exit_code == Exit.TIMEOUT


def test_a_hello_is_said_again_until_it_is_heard(
    serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ports, "HELLO_AGAIN_S", 0.01)
    heard: list[int] = []

    def deaf_at_first(asked: Envelope) -> bytes:
        heard.append(asked.id)
        return hello(asked) if len(heard) >= 3 else b""

    with Port(serve(deaf_at_first).path) as port:
        assert port.generation == 7
    assert len(set(heard)) == 1


def test_an_answer_that_does_not_end_is_refused(
    serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ports, "LINE_MAX", 100_000)
    server = serve(lambda asked: hello(asked) if asked.kind is Kind.HELLO else b"A" * 500_000)
    with pytest.raises(SpineError, match="broke"):
        call(server.path)


@pytest.mark.parametrize("body", [b"", b"\xff" * 64, b"\0" * 7])
def test_results_that_are_none_are_told(serve: Callable[..., Server], body: bytes) -> None:
    server = serve(
        lambda asked: (
            hello(asked)
            if asked.kind is Kind.HELLO
            else line(Envelope(kind=Kind.REPLY, id=asked.id, body=body))
        )
    )
    with pytest.raises(SpineError, match="broke"):
        call(server.path)


def test_nobody_there(tmp_path: Path) -> None:
    with pytest.raises(SpineError, match="cannot be reached") as raised:
        Port(tmp_path / "none")
    assert raised.value.exit_code == Exit.HOST_NOT_READY


def test_the_port_is_for_one_at_a_time(serve: Callable[..., Server]) -> None:
    server = serve()
    with Port(server.path):
        with pytest.raises(SpineError, match="in use") as raised:
            Port(server.path, deadline_s=0.05)
        assert raised.value.exit_code == Exit.TIMEOUT
    with Port(server.path):
        pass


def test_an_unknown_method_is_no_such_thing(serve: Callable[..., Server]) -> None:
    with Port(serve().path) as port:
        for name in ("gate.nothing", "nobody.get", "gate", ""):
            with pytest.raises(SpineError) as raised:
                port.call(name)
            assert raised.value.exit_code == Exit.NO_SUCH_THING


def test_schemas_are_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert "gate" in ports.schemas().interfaces
    [made] = (tmp_path / "alpine-spine").glob("schemas-*")
    stamp = (made / "schemas.cgr").stat()
    ports.schemas()
    assert (made / "schemas.cgr").stat() == stamp
    assert list((tmp_path / "alpine-spine").iterdir()) == [made]

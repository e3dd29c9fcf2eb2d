"""gRPC over a unix socket, its Python package, bytes in and out: `serve PATH` and `call PATH`."""

from __future__ import annotations

import sys
import threading
import time
from concurrent import futures

import grpc  # type: ignore[import-untyped]  # in the bench's own venv

from tests.bench.programs import asked

METHOD = "/bench.Echo/Same"


class Echo(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Answers with what it was asked."""

    def service(self, details: grpc.HandlerCallDetails) -> object:
        """The handler of a method."""
        return (
            grpc.unary_unary_rpc_method_handler(lambda request, _: request)
            if details.method == METHOD
            else None
        )


def serve(path: str) -> None:
    server = grpc.server(futures.ThreadPoolExecutor(16))
    server.add_generic_rpc_handlers((Echo(),))
    server.add_insecure_port(f"unix:{path}")
    server.start()
    asked.ready()
    sys.stdin.read()
    server.stop(None)


def call(path: str) -> None:
    with grpc.insecure_channel(f"unix:{path}") as channel:
        same = channel.unary_unary(METHOD)
        same(b"", timeout=20)
        asked.ready()
        for calls, callers, size in asked.questions():
            asked.answer(one_round(same, calls, callers, size))


def one_round(same: object, calls: int, callers: int, size: int) -> dict[str, object]:
    payload = bytes(size)
    took: list[int] = []
    clock = time.perf_counter_ns

    def ask(count: int) -> None:
        for _ in range(count):
            began = clock()
            got = same(payload)  # type: ignore[operator]
            took.append(clock() - began)
            assert len(got) == size

    began = clock()
    threads = [threading.Thread(target=ask, args=(calls // callers,)) for _ in range(callers - 1)]
    for thread in threads:
        thread.start()
    ask(calls // callers)
    for thread in threads:
        thread.join()
    return asked.told(took, began)


if __name__ == "__main__":
    {"serve": serve, "call": call}[sys.argv[1]](sys.argv[2])

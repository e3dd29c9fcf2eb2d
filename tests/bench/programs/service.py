"""A service as small as can be: `service.py PATH` listens on a unix socket and answers a byte with a byte.

With `imports` behind the path it first imports what an organ of the spine has: without a zygote that is what
a restart costs.
"""

from __future__ import annotations

import os
import socket
import sys


def main(path: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        try:
            listening.bind(path)
        except OSError:
            os.unlink(path)
            listening.bind(path)
        listening.listen()
        while True:
            asking, _ = listening.accept()
            with asking:
                asking.sendall(asking.recv(1))


if __name__ == "__main__":
    if sys.argv[2:] == ["imports"]:
        import bus.client
        import bus.server
        import bus.tap

        assert bus.client
        assert bus.server
        assert bus.tap
    main(sys.argv[1])

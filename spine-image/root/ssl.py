"""Stands where the standard library's TLS would be: the spine has no network, so it carries no TLS.

trio and asyncio import this name and want these classes to exist; whoever tries to use one is told. Touches
nothing and never encrypts. Using it raises SSLError.
"""


class SSLError(OSError):
    """Any failure of TLS; here, that there is none."""


class SSLEOFError(SSLError):
    """Never raised here."""


class SSLSyscallError(SSLError):
    """Never raised here."""


class SSLWantReadError(SSLError):
    """Never raised here."""


class SSLWantWriteError(SSLError):
    """Never raised here."""


class CertificateError(SSLError, ValueError):
    """Never raised here."""


class _Absent:
    def __init__(self, *_arguments: object, **_options: object) -> None:
        raise SSLError("there is no TLS in the spine")


class SSLContext(_Absent):
    """Cannot be made."""


class MemoryBIO(_Absent):
    """Cannot be made."""


class SSLObject(_Absent):
    """Cannot be made."""

"""Which files of the packages and wheels go into the root. Pure: paths in, yes or no out.

The rule is written as what stays out, with the reason: the organs may use the rest of the standard library,
but nothing that compiles, debugs, installs, serves, draws or tests belongs on the machine.
"""

from fnmatch import fnmatchcase

# Modules and packages of the standard library that stay out.
STDLIB_OUT = {
    "tests and examples": "test __hello__ __phello__ antigravity this turtle doctest unittest",
    "making programs": "distutils _distutils_system_mod lib2to3 ensurepip venv zipapp compileall py_compile "
    "_bootsubprocess modulefinder _sysconfigdata* pyclbr symtable tabnanny trace sitecustomize",
    "windows, terminals and sounds": "idlelib tkinter curses aifc audioop chunk colorsys imghdr sndhdr sunau "
    "wave ossaudiodev readline rlcompleter getpass pty _osx_support _aix_support nturl2path",
    "talking at a prompt, debugging, profiling": "code codeop cmd pdb bdb profile cProfile pstats timeit "
    "pydoc pydoc_data webbrowser pickletools tracemalloc",
    "services of the internet": "ftplib imaplib nntplib poplib smtplib smtpd telnetlib xmlrpc wsgiref cgi "
    "cgitb mailbox mailcap netrc http socketserver asynchat asyncore nis",
    "databases and formats that nothing here reads": "dbm shelve xdrlib uu crypt pipes imp sgmllib plistlib "
    "optparse fileinput xml html tarfile gzip bz2 lzma _compression zipfile email quopri mimetypes csv "
    "configparser zoneinfo _markupbase",
    "command lines, languages and what compares files": "argparse getopt shlex gettext difflib filecmp sched "
    "graphlib uuid sysconfig",
    # There is no network, so there is no TLS: spine-image/root/ssl.py stands where it would be. hashlib has
    # its own hashes without OpenSSL.
    "what needs OpenSSL": "ssl",
    "second copies in Python of what is there in C, and what builds on them": "_pyio _pydecimal decimal "
    "fractions statistics",
    "processes made the heavy way": "multiprocessing",
}
# Packages with parts that stay out: paths below /usr/lib/python3.11.
STDLIB_PARTS_OUT = (
    "ctypes/macholib/*",
    "ctypes/test/*",
    "sqlite3/test/*",
    # What is installed is in the tables or lies in the tree; nobody asks for its version or its data.
    "importlib/metadata/*",
    "importlib/resources/*",
    "importlib/readers.py",
    "importlib/simple.py",
    "asyncio/__main__.py",
    "asyncio/proactor_events.py",
    "asyncio/windows_*",
    "concurrent/futures/process.py",
    "ctypes/_aix.py",
    "ctypes/wintypes.py",
    "json/tool.py",
    "logging/config.py",
    "logging/handlers.py",
    "sqlite3/dump.py",
    "urllib/error.py",
    "urllib/request.py",
    "urllib/response.py",
    "urllib/robotparser.py",
    "encodings/cp*",
    "encodings/mac_*",
    "encodings/iso*",
    "encodings/koi8*",
    "encodings/big5*",
    "encodings/euc*",
    "encodings/gb*",
    "encodings/hz*",
    "encodings/jo*",
    "encodings/shift*",
    "encodings/kz*",
    "encodings/ptcp*",
    "encodings/tis*",
    "encodings/hp_*",
    "encodings/palmos*",
    "encodings/mbcs*",
    "encodings/oem*",
)
# The compiled parts of the standard library that stay in; each brings its shared libraries along.
DYNLOAD_IN = (
    "_asyncio",
    "_contextvars",
    "_ctypes",
    "_json",
    "_queue",
    "_sqlite3",
    "_typing",
    "mmap",
    "resource",
    "termios",
)
# In wheels: what serves building and testing, and sources of what is compiled.
WHEELS_OUT = (
    "*/_tests/*",
    "*/tests/*",
    "*/testing/*",
    "*.pyx",
    "*.pxd",
    "*.pxi",
    "*.pyi",
    "*.c",
    "*.cpp",
    "*.h",
    "*.hpp",
    "*.capnp.orig",
    # All of Cap'n Proto's own schemas but the schema of schemas, which reads what the build compiled.
    "capnp/persistent.capnp",
    "capnp/rpc*.capnp",
    "capnp/stream.capnp",
    "*.txt",
    "*.a",
    "*.lib",
    "*/py.typed",
    "*/templates/*",
    "*/include/*",
    "*/includes/*",
    "*.dist-info/*",
    "*.data/*",
    # The schema compiler's command and the build hook; the machine loads compiled schemas only.
    "capnp/_gen.py",
    "capnp/version.py.in",
    # Event loops, authenticators and devices that nothing here uses.
    "zmq/_future.py",
    "zmq/asyncio.py",
    "zmq/backend/cffi/*",
    "zmq/curve_keygen.py",
    "zmq/decorators.py",
    "zmq/eventloop/*",
    "zmq/green/*",
    "zmq/log/*",
    "zmq/ssh/*",
    "zmq/devices/*",
    "zmq/auth/*",
    "zmq/utils/monitor.py",
    "zmq/utils/win32.py",
    "zmq/utils/z85.py",
    "trio/__main__.py",
    "trio/_repl.py",
    "trio/_windows_pipes.py",
    "trio/_core/*_io_windows.py",
    "trio/_core/*_io_kqueue.py",
    "trio/_core/*windows_*",
    "trio/_tools/*",
    "idna/__main__.py",
    "idna/cli.py",
    "idna/codec.py",
    "idna/compat.py",
)
# trio.testing is imported by nothing but tests, yet trio's own package names it lazily; it stays out above.

# What reads the schemas' text or writes about them runs where images are built, and nowhere else.
BUILD_ONLY = frozenset({"bus/compile.py", "bus/reference.py"})

_STDLIB_NAMES = tuple(name for names in STDLIB_OUT.values() for name in names.split())


def keep_stdlib(path: str) -> bool:
    """Whether a file below /usr/lib/python3.11 stays; `path` is relative to there."""
    first, _, rest = path.partition("/")
    if first == "lib-dynload":
        return rest.split(".")[0] in DYNLOAD_IN
    if not path.endswith(".py"):
        return False
    name = first.removesuffix(".py")
    out = any(fnmatchcase(name, pattern) for pattern in _STDLIB_NAMES)
    return not out and not any(fnmatchcase(path, pattern) for pattern in STDLIB_PARTS_OUT)


def keep_wheel(path: str) -> bool:
    """Whether a file of a wheel stays; `path` is relative to dist-packages."""
    return not path.endswith("/") and not any(fnmatchcase(path, pattern) for pattern in WHEELS_OUT)


# bay0's probes, and what only they read.
PROBES = frozenset({"organs/bay0/probes.py", "organs/kernel/inspection.py"})


def keep_own(path: str, development_organs: frozenset[str], *, production: bool) -> bool:
    """Whether one of our own files below organs/ or bus/ goes into the image."""
    parts = path.split("/")
    if not path.endswith(".py") or parts[0] not in ("organs", "bus"):
        return False
    if path in BUILD_ONLY:
        return False
    if not production:
        return True
    # INV-IMAGE-3
    return path not in PROBES and not (parts[0] == "organs" and parts[1] in development_organs)

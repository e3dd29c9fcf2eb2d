"""What a package says of its own licence, where it says so in a form that a machine can read.

Reads packages; the rest is pure. Believes two forms: Debian's machine-readable copyright file (the licence of
`Files: *`, which is the package as a whole) and a wheel's METADATA. Guesses nothing: what is not one of the
names it knows is NOASSERTION.
"""

import io
import re
import subprocess
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from spine.image import commands

NOASSERTION = "NOASSERTION"

# Debian's short names (DEP-5) whose meaning in SPDX's list is sure.
_DEBIAN = {
    "Apache-2.0": "Apache-2.0",
    "BSD-2-clause": "BSD-2-Clause",
    "BSD-3-clause": "BSD-3-Clause",
    "CC0-1.0": "CC0-1.0",
    "Expat": "MIT",
    "GPL-2": "GPL-2.0-only",
    "GPL-2+": "GPL-2.0-or-later",
    "GPL-3": "GPL-3.0-only",
    "GPL-3+": "GPL-3.0-or-later",
    "ISC": "ISC",
    "LGPL-2.1": "LGPL-2.1-only",
    "LGPL-2.1+": "LGPL-2.1-or-later",
    "MIT": "MIT",
    "Zlib": "Zlib",
}
# What a wheel may say, alone or joined by OR and AND.
_SPDX = frozenset(_DEBIAN.values()) | {"0BSD", "MPL-2.0", "PSF-2.0", "Unlicense"}
# A copyright file of Debian's has some ten kilobytes; the longest here has fifty.
_TEXT_MAX = 1 << 20


@dataclass(frozen=True)
class Licence:
    """A licence as SPDX writes it, and every name that the package itself uses."""

    declared: str = NOASSERTION
    names: tuple[str, ...] = ()


def of_deb(name: str, deb: Path) -> Licence:
    """What a Debian package says."""
    unpacked = subprocess.run(
        [commands.find("dpkg-deb"), "--fsys-tarfile", deb],
        env=commands.environment(),
        capture_output=True,
        check=True,
    ).stdout
    with tarfile.open(fileobj=io.BytesIO(unpacked)) as archive:
        try:
            # Some have a link to another package's; those say nothing of their own.
            member = archive.extractfile(f"./usr/share/doc/{name}/copyright")
        except KeyError:
            return Licence()
        return of_copyright(member.read(_TEXT_MAX).decode(errors="replace")) if member else Licence()


def of_wheel(wheel: Path) -> Licence:
    """What a wheel says."""
    with zipfile.ZipFile(wheel) as opened:
        for name in opened.namelist():
            if re.fullmatch(r"[^/]+\.dist-info/METADATA", name):
                return of_metadata(opened.read(name).decode(errors="replace"))
    return Licence()


def of_copyright(text: str) -> Licence:
    """The licence in the text of Debian's copyright file. Pure."""
    if not re.match(
        r"Format:\s*https?://www\.debian\.org/doc/packaging-manuals/copyright-format/1\.0/?\s", text
    ):
        return Licence()
    whole, names = NOASSERTION, set()
    for paragraph in re.split(r"\n\s*\n", text):
        fields = dict(re.findall(r"^(Files|License):[ \t]*(.*?)[ \t]*$", paragraph, re.MULTILINE))
        if "Files" in fields and fields.get("License"):
            names.add(fields["License"])
            if fields["Files"] == "*":
                whole = _DEBIAN.get(fields["License"], NOASSERTION)
    return Licence(whole, tuple(sorted(names)))


def of_metadata(text: str) -> Licence:
    """The licence in a wheel's METADATA. Pure."""
    head = text.partition("\n\n")[0]
    fields = dict(re.findall(r"^(License-Expression|License): (.*?)\s*$", head, re.MULTILINE))
    said = fields.get("License-Expression") or fields.get("License") or ""
    words = re.split(r" (?:OR|AND) ", said)
    declared = said if said and all(word in _SPDX for word in words) else NOASSERTION
    return Licence(declared, (said,) if said else ())

"""Lists what an image is made of, as SPDX 2.3 (ISO/IEC 5962) in JSON.

Pure: the lock and our own files in, a document out; the same inputs give the same bytes, so its date is that
of the lock. Says of a licence what the package itself says, else NOASSERTION (`licences.py`).
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from urllib.parse import quote

from spine.image.inputs import Inputs, Package, Wheel
from spine.image.licences import NOASSERTION, Licence

FILE = "sbom.spdx.json"
IMAGE, OWN = "SPDXRef-Image", "SPDXRef-AlpineSpine"
# What the kernel says of itself in its COPYING; its package is too large to look into for it.
KERNEL = Licence("GPL-2.0-only WITH Linux-syscall-note", ("GPL-2.0 WITH Linux-syscall-note",))
# What our own tree says in pyproject.toml and LICENSE.
OURS = Licence("Apache-2.0", ("Apache-2.0",))
# How an input gets into the image: as it is or in parts, or by being compiled.
_RELATION = {"root": "CONTAINS", "boot": "CONTAINS", "kernel": "GENERATED_FROM"}

Object = dict[str, object]


def document(
    release: Mapping[str, str],
    locked: Inputs,
    licences: Mapping[str, Licence],
    own: Sequence[tuple[str, bytes]],
    image_sha256: str,
) -> bytes:
    """The document's bytes. `licences` are by `deb:NAME` and `wheel:NAME`; `own` are our files."""
    files = [_file(path, data) for path, data in sorted(own)]
    packages = [
        _image(release, image_sha256),
        _own(release, own),
        *(_deb(package, licences) for package in locked.packages),
        *(_wheel(wheel, licences) for wheel in locked.wheels),
    ]
    relations = [
        _relation("SPDXRef-DOCUMENT", "DESCRIBES", IMAGE),
        _relation(IMAGE, "GENERATED_FROM", OWN),
        *(_relation(OWN, "CONTAINS", str(file["SPDXID"])) for file in files),
        *(_relation(IMAGE, _RELATION.get(one.use, "OTHER"), _id("deb", one.name)) for one in locked.packages),
        *(_relation(IMAGE, "CONTAINS", _id("wheel", one.name)) for one in locked.wheels),
    ]
    body: Object = {
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": f"alpine-spine-{release['version']}-{release['image']}",
        "creationInfo": {
            "created": datetime.fromtimestamp(locked.epoch, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "creators": [f"Tool: alpine-spine-{release['version']}"],
            "comment": "The date is that of the inputs, so that the same inputs give the same document.",
        },
        "packages": packages,
        "files": files,
        "relationships": relations,
    }
    # A name that nobody else's document has, and that this one keeps: the hash of its content.
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    body["documentNamespace"] = f"https://alpine-spine.invalid/spdx/{digest}"
    return (json.dumps(body, indent=1, sort_keys=True) + "\n").encode()


def _image(release: Mapping[str, str], sha256: str) -> Object:
    return {
        **_package(IMAGE, "spine.img", release["version"], Licence()),
        "packageFileName": "spine.img",
        "primaryPackagePurpose": "OPERATING-SYSTEM",
        "summary": f"The {release['image']} image",
        "checksums": [_checksum("SHA256", sha256)],
    }


def _own(release: Mapping[str, str], own: Iterable[tuple[str, bytes]]) -> Object:
    # SPDX's own way to sum up files: SHA-1 over their sorted SHA-1s.
    sums = sorted(hashlib.sha1(data, usedforsecurity=False).hexdigest() for _path, data in own)
    code = hashlib.sha1("".join(sums).encode(), usedforsecurity=False).hexdigest()
    return {
        **_package(OWN, "alpine-spine", release["version"], OURS),
        "filesAnalyzed": True,
        "packageVerificationCode": {"packageVerificationCodeValue": code},
        "primaryPackagePurpose": "SOURCE",
    }


def _deb(package: Package, licences: Mapping[str, Licence]) -> Object:
    said = KERNEL if package.use == "kernel" else licences.get(f"deb:{package.name}", Licence())
    version = quote(package.version, safe="~")
    arch = "all" if package.use == "kernel" else "amd64"
    return {
        **_package(_id("deb", package.name), package.name, package.version, said),
        "supplier": "Organization: Debian",
        "checksums": [_checksum("SHA256", package.sha256)],
        "externalRefs": [_purl(f"pkg:deb/debian/{quote(package.name)}@{version}?arch={arch}")],
    }


def _wheel(wheel: Wheel, licences: Mapping[str, Licence]) -> Object:
    said = licences.get(f"wheel:{wheel.name}", Licence())
    return {
        **_package(_id("wheel", wheel.name), wheel.name, wheel.version, said),
        "packageFileName": wheel.file,
        "checksums": [_checksum("SHA256", wheel.sha256)],
        "externalRefs": [_purl(f"pkg:pypi/{wheel.name}@{wheel.version}")],
    }


def _package(id_: str, name: str, version: str, said: Licence) -> Object:
    found: Object = {
        "SPDXID": id_,
        "name": name,
        "versionInfo": version,
        "downloadLocation": NOASSERTION,
        "filesAnalyzed": False,
        "licenseConcluded": NOASSERTION,
        "licenseDeclared": said.declared,
        "copyrightText": NOASSERTION,
    }
    if said.names:
        found["licenseComments"] = f"It names: {'; '.join(said.names)}"
    return found


def _file(path: str, data: bytes) -> Object:
    return {
        "SPDXID": _id("file", path),
        "fileName": f"./{path}",
        "checksums": [
            _checksum("SHA1", hashlib.sha1(data, usedforsecurity=False).hexdigest()),
            _checksum("SHA256", hashlib.sha256(data).hexdigest()),
        ],
        "licenseConcluded": NOASSERTION,
        "licenseInfoInFiles": [NOASSERTION],
        "copyrightText": NOASSERTION,
    }


def _id(kind: str, name: str) -> str:
    """An id of SPDX's few characters; others are written by their numbers, so that no two fall together."""
    return f"SPDXRef-{kind}-" + re.sub(r"[^A-Za-z0-9.]", lambda found: f"-{ord(found[0]):x}-", name)


def _checksum(algorithm: str, value: str) -> Object:
    return {"algorithm": algorithm, "checksumValue": value}


def _purl(locator: str) -> Object:
    return {
        "referenceCategory": "PACKAGE-MANAGER",
        "referenceType": "purl",
        "referenceLocator": locator,
    }


def _relation(of: str, kind: str, to: str) -> Object:
    return {"spdxElementId": of, "relationshipType": kind, "relatedSpdxElement": to}

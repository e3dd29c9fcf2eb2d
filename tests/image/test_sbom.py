"""The list of what an image is made of: complete, the same each time, and of the form that it claims.

The form is checked by SPDX 2.3's rules of what must be there, written down here; what spdx-tools said is in
docs/decisions/0032-provenance.md.
"""

import json
import re
from collections.abc import Callable
from hashlib import sha1
from typing import Any, cast

from spine import paths
from spine.image import inputs, sbom
from spine.image.licences import NOASSERTION, Licence

LOCKED = inputs.decode((paths.ROOT / inputs.LOCK).read_text())
RELEASE = {"name": "Alpine-Spine", "version": "0.1.0", "image": "production"}
OWN = [("organs/b.py", b"two"), ("organs/a.py", b"one"), ("organs/a-b.py", b""), ("organs/a_b.py", b"")]
SAID = {"wheel:trio": Licence("MIT OR Apache-2.0", ("MIT OR Apache-2.0",))}
Object = dict[str, object]


def made() -> Object:
    data = sbom.document(RELEASE, LOCKED, SAID, OWN, "ab" * 32)
    return cast(Object, json.loads(data))


def rows(document: Object, key: str) -> list[Object]:
    return cast(list[Object], document[key])


def test_the_same_inputs_give_the_same_bytes_in_any_order() -> None:
    one = sbom.document(RELEASE, LOCKED, SAID, OWN, "ab" * 32)
    assert one == sbom.document(RELEASE, LOCKED, SAID, OWN[::-1], "ab" * 32)
    other = sbom.document(RELEASE, LOCKED, SAID, OWN[1:], "ab" * 32)
    assert json.loads(one)["documentNamespace"] != json.loads(other)["documentNamespace"]


def test_every_input_is_in_it_with_its_hash() -> None:
    found = {
        (row["name"], row["versionInfo"]): cast(list[dict[str, str]], row.get("checksums", []))
        for row in rows(made(), "packages")
    }
    wanted: list[inputs.Package | inputs.Wheel] = [*LOCKED.packages, *LOCKED.wheels]
    for one in wanted:
        assert [sum_["checksumValue"] for sum_ in found[one.name, one.version]] == [one.sha256]
    assert found["spine.img", "0.1.0"][0]["checksumValue"] == "ab" * 32
    assert len(found) == len(LOCKED.packages) + len(LOCKED.wheels) + 2
    files = {row["fileName"] for row in rows(made(), "files")}
    assert files == {f"./{path}" for path, _ in OWN}


def test_licences_are_those_that_packages_say_and_no_others() -> None:
    declared = {row["name"]: row["licenseDeclared"] for row in rows(made(), "packages")}
    assert declared.pop("trio") == "MIT OR Apache-2.0"
    assert declared.pop("linux-source-6.12") == "GPL-2.0-only WITH Linux-syscall-note"
    assert declared.pop("alpine-spine") == "Apache-2.0"
    assert set(declared.values()) == {NOASSERTION}


def problems(document: Object) -> list[str]:
    """What SPDX 2.3 wants and this document lacks."""
    wrong = [
        key
        for key in ("spdxVersion", "dataLicense", "SPDXID", "name", "documentNamespace", "creationInfo")
        if not document.get(key)
    ]
    everything = [*rows(document, "packages"), *rows(document, "files")]
    ids = [str(row["SPDXID"]) for row in everything]
    wrong += [id_ for id_ in ids if not re.fullmatch(r"SPDXRef-[A-Za-z0-9.-]+", id_)]
    wrong += [f"twice {id_}" for id_ in ids if ids.count(id_) > 1]
    wrong += [
        f"no {row}" for row in everything for key in ("copyrightText", "licenseConcluded") if not row[key]
    ]
    wrong += [
        str(row) for row in rows(document, "packages") if not row["name"] or not row["downloadLocation"]
    ]
    for row in rows(document, "files"):
        kinds = {sum_["algorithm"] for sum_ in cast(list[dict[str, str]], row["checksums"])}
        wrong += [] if kinds >= {"SHA1"} and str(row["fileName"]).startswith("./") else [str(row)]
    known = {"SPDXRef-DOCUMENT", *ids}
    described = False
    for row in rows(document, "relationships"):
        wrong += [str(row)] if not {row["spdxElementId"], row["relatedSpdxElement"]} <= known else []
        described |= row["relationshipType"] == "DESCRIBES" and row["spdxElementId"] == "SPDXRef-DOCUMENT"
    return wrong if described else [*wrong, "it describes nothing"]


def test_it_is_of_the_form_that_it_claims() -> None:
    assert problems(made()) == []
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", cast(dict[str, str], made()["creationInfo"])["created"]
    )
    own = next(row for row in rows(made(), "packages") if row["name"] == "alpine-spine")
    sums = "".join(sorted(sha1(data).hexdigest() for _, data in OWN))
    assert own["packageVerificationCode"] == {"packageVerificationCodeValue": sha1(sums.encode()).hexdigest()}


def test_the_check_of_the_form_sees_what_is_wrong() -> None:
    spoils: list[Callable[[dict[str, Any]], object]] = [
        lambda document: document.pop("documentNamespace"),
        lambda document: document["packages"].append(dict(document["packages"][0])),
        lambda document: document["relationships"].pop(0),
        lambda document: document["relationships"][1].update(relatedSpdxElement="SPDXRef-nobody"),
        lambda document: document["files"][0]["checksums"].pop(0),
        lambda document: document["packages"][0].update(SPDXID="SPDXRef-a_b"),
    ]
    for spoil in spoils:
        document = json.loads(json.dumps(made()))
        spoil(document)
        assert problems(document)

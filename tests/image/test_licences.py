"""What packages say of their licences: two forms are believed, nothing is guessed."""

import io
import subprocess
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spine.image import licences
from spine.image.licences import NOASSERTION, Licence

DEP5 = """Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: thing

Files: *
Copyright: somebody
License: LGPL-2.1+

Files: install-sh
License: X11
 the text

License: LGPL-2.1+
 the text
"""


def test_the_whole_package_counts_and_every_name_is_told() -> None:
    assert licences.of_copyright(DEP5) == Licence("LGPL-2.1-or-later", ("LGPL-2.1+", "X11"))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "This is free software, GPL-2+.\n",
        DEP5.replace("1.0/", "2.0/"),
        "License: MIT\n" + DEP5.partition("\n")[2],
    ],
)
def test_a_file_of_another_form_says_nothing(text: str) -> None:
    assert licences.of_copyright(text) == Licence()


def test_a_name_that_is_not_sure_is_told_but_not_declared() -> None:
    found = licences.of_copyright(DEP5.replace("License: LGPL-2.1+", "License: public-domain", 1))
    assert found == Licence(NOASSERTION, ("X11", "public-domain"))


@pytest.mark.parametrize(
    ("head", "said"),
    [
        ("License-Expression: MIT OR Apache-2.0", Licence("MIT OR Apache-2.0", ("MIT OR Apache-2.0",))),
        ("License: BSD-2-Clause", Licence("BSD-2-Clause", ("BSD-2-Clause",))),
        ("License: whatever\nLicense-Expression: ISC", Licence("ISC", ("ISC",))),
        ("License: Apache 2.0", Licence(NOASSERTION, ("Apache 2.0",))),
        ("License: MIT OR mine", Licence(NOASSERTION, ("MIT OR mine",))),
        ("Classifier: License :: OSI Approved :: MIT License", Licence()),
        ("Name: x\n\nLicense: MIT", Licence()),  # that is the description
    ],
)
def test_a_wheel_is_believed_when_it_speaks_spdx(head: str, said: Licence) -> None:
    assert licences.of_metadata(f"Metadata-Version: 2.4\n{head}\n\ntext\n") == said


@given(st.text(max_size=400))
def test_any_text_has_an_answer(text: str) -> None:
    for found in (
        licences.of_copyright(text),
        licences.of_copyright(DEP5 + text),
        licences.of_metadata(text),
    ):
        assert found.declared


def test_real_packages_are_opened(tmp_path: Path) -> None:
    wheel = tmp_path / "thing.whl"
    with zipfile.ZipFile(wheel, "w") as made:
        made.writestr("thing-1.dist-info/METADATA", "Name: thing\nLicense-Expression: MIT\n\n")
    assert licences.of_wheel(wheel).declared == "MIT"
    folder = tmp_path / "deb"
    (folder / "DEBIAN").mkdir(parents=True)
    (folder / "DEBIAN/control").write_text(
        "Package: thing\nVersion: 1\nArchitecture: all\nMaintainer: x <x@x.invalid>\nDescription: x\n"
    )
    (folder / "usr/share/doc/thing").mkdir(parents=True)
    (folder / "usr/share/doc/thing/copyright").write_text(DEP5)
    (folder / "usr/share/doc/other").symlink_to("thing")
    subprocess.run(["dpkg-deb", "--build", folder, tmp_path / "thing.deb"], capture_output=True, check=True)
    assert licences.of_deb("thing", tmp_path / "thing.deb").declared == "LGPL-2.1-or-later"
    for name in ("other", "third"):
        assert licences.of_deb(name, tmp_path / "thing.deb") == Licence()


def test_a_wheel_without_metadata_says_nothing(tmp_path: Path) -> None:
    empty = io.BytesIO()
    zipfile.ZipFile(empty, "w").close()
    (tmp_path / "empty.whl").write_bytes(empty.getvalue())
    assert licences.of_wheel(tmp_path / "empty.whl") == Licence()

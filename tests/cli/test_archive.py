# SPDX-License-Identifier: Apache-2.0
import hashlib
import zipfile

import pytest

from common.cli.archive import SUMS, verify_archive
from common.cli.verify import verify

FILES = {"configs/metadata.json": b"{}", "models/model.pt": b"weights", "scripts/common/__init__.py": b""}


def packed(path, files=FILES, sums=None, top="bundle"):
    listed = sums or "".join(f"{hashlib.sha256(FILES[name]).hexdigest()}  {name}\n" for name in sorted(FILES))
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in {**files, SUMS: listed.encode()}.items():
            archive.writestr(f"{top}/{name}", content)
    return path


def test_a_zip_as_it_was_packed_passes(tmp_path, capsys):
    path = packed(tmp_path / "bundle_v1.zip")
    verify(str(path))
    said = capsys.readouterr().out
    assert "bundle, 3 files" in said and hashlib.sha256(path.read_bytes()).hexdigest() in said


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (FILES | {"models/model.pt": b"other"}, "changed: models/model.pt"),
        ({name: data for name, data in FILES.items() if not name.endswith(".pt")}, "missing: models/model.pt"),
        (FILES | {"scripts/more.py": b"1"}, f"not in {SUMS}: scripts/more.py"),
    ],
    ids=["changed", "missing", "added"],
)
def test_a_tampered_zip_names_the_files(tmp_path, files, said):
    path = packed(tmp_path / "bundle_v1.zip", files)
    with pytest.raises(ValueError, match=f"is not as it was packed: {said}. Do not use it"):
        verify(str(path))


def test_what_is_no_packed_bundle_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no"):
        verify_archive(tmp_path / "absent.zip")
    (tmp_path / "text.zip").write_text("no zip")
    with pytest.raises(ValueError, match="no readable zip"):
        verify_archive(tmp_path / "text.zip")
    with zipfile.ZipFile(tmp_path / "bare.zip", "w") as archive:
        archive.writestr("bundle/LICENSE", "text")
    with pytest.raises(ValueError, match=f"expected bundle/{SUMS}"):
        verify_archive(tmp_path / "bare.zip")
    with pytest.raises(ValueError, match="expected one folder"):
        verify_archive(packed(tmp_path / "up.zip", FILES | {"../../evil.py": b""}))
    with pytest.raises(ValueError, match="which is no sum"):
        verify_archive(packed(tmp_path / "sums.zip", sums="abc  LICENSE\n"))

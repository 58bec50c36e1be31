# SPDX-License-Identifier: Apache-2.0
import hashlib
import json

import pytest

from common.cli import zoo
from common.cli.pack import LARGE_FILES


@pytest.mark.parametrize(("folder", "refused"), [("models", True), ("runs", False)])
def test_large_files_are_refused_outside_runs(bundle, folder, refused):
    (bundle / folder).mkdir(exist_ok=True)
    with open(bundle / folder / "large.bin", "wb") as stream:
        stream.truncate(zoo.LARGEST_BYTES + 1)
    if refused:
        with pytest.raises(ValueError, match=r"larger than 25 MB: models/large\.bin.*large_files\.json"):
            zoo.check_large_files(bundle)
    else:
        zoo.check_large_files(bundle)


def entry(**changes):
    content = {"path": "models/model.pt", "url": "https://example.org/model.pt", "hash_type": "sha256", **changes}
    return json.dumps({"large_files": [content]})


def test_a_large_file_may_be_listed_with_link_and_hash(bundle):
    with open(bundle / "models" / "model.pt", "wb") as stream:
        stream.truncate(zoo.LARGEST_BYTES + 1)
    digest = hashlib.sha256(b"\0" * (zoo.LARGEST_BYTES + 1)).hexdigest()
    (bundle / LARGE_FILES).write_text(entry(hash_val=digest))
    zoo.check_large_files(bundle)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"url": "file:///model.pt"}, r"models/model\.pt has no url"),
        ({"hash_type": "md5"}, "has hash_type 'md5'. Write sha256"),
        ({"hash_val": "0"}, "here has the sha256 .*, not hash_val"),
    ],
)
def test_entries_of_large_files_are_checked(bundle, changes, reason):
    (bundle / "models" / "model.pt").write_bytes(b"x")
    (bundle / LARGE_FILES).write_text(entry(**changes))
    with pytest.raises(ValueError, match=reason):
        zoo.check_large_files(bundle)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"name": ""}, "name is missing"),
        ({"eval_metrics": {"dice": "high"}}, "eval_metrics must hold the numbers .*got {'dice': 'high'}"),
        ({"weights": ["model.pt"]}, "eval_metrics must hold the numbers"),
    ],
)
def test_metadata_that_the_zoo_shows_are_missed(bundle, edit, change, reason):
    zoo.check_zoo_metadata(bundle)
    edit(bundle / "configs" / "metadata.json", lambda metadata: metadata.update(change))
    with pytest.raises(ValueError, match=reason):
        zoo.check_zoo_metadata(bundle)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("From the root of the repository", "From the root", "must say 'From the root of the repository.'"),
        ("(data_license.txt)", "(licence.txt)", r"as packed: licence\.txt leads to no file"),
        ("configs/inference.json --moving", "configs/infer.json --moving", r"reads configs/infer\.json, which is not"),
        ("--moving ", "--movign ", "'inferring' is given --movign, no key"),
        ("run inferring", "run infer", r"'infer' is no key of configs/inference\.json"),
    ],
)
def test_a_readme_that_cannot_be_followed_after_packing_fails(bundle, old, new, reason):
    zoo.check_packed_readme(bundle)
    readme = bundle / "docs" / "README.md"
    assert old in readme.read_text()
    readme.write_text(readme.read_text().replace(old, new))
    with pytest.raises(ValueError, match=reason):
        zoo.check_packed_readme(bundle)

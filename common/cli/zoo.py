# SPDX-License-Identifier: Apache-2.0
"""What MONAI's model zoo needs of a bundle, checked offline; ``verify`` calls it.

Files that are too large for it stand in large_files.json (the zoo takes .yml as well, which needs another library):
``{"large_files": [{"path": "models/model.pt", "url": "https://…", "hash_type": "sha256", "hash_val": "…"}]}``.

Reference: Project-MONAI/model-zoo, CONTRIBUTING.md and ci/verify_bundle.py.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from .bundles import read_json
from .documents import PACKED_PLACE, dead_links, wrong_commands
from .pack import LARGE_FILES, packed_configurations, packed_files

LARGEST_BYTES = 25 * 2**20


def listed_files(bundle: Path) -> dict[str, dict[str, Any]]:
    """Entries of large_files.json by the path that they stand for, none where there is no such file.

    Args:
        bundle: its folder.

    Returns:
        Entry by path.
    """
    path = bundle / LARGE_FILES
    entries = read_json(path).get("large_files", []) if path.is_file() else []
    return {str(entry.get("path", "")): entry for entry in entries}


def check_large_files(bundle: Path) -> None:
    """Files above 25 MB are in large_files.json, each entry with a link and the hash of the file that is there.

    Args:
        bundle: its folder.
    """
    listed = listed_files(bundle)
    for name, entry in listed.items():
        if not str(entry.get("url", "")).startswith("https://"):
            raise ValueError(f"{LARGE_FILES}: {name} has no url. Give the https:// address that it is downloaded from.")
        if entry.get("hash_type") != "sha256":
            raise ValueError(f"{LARGE_FILES}: {name} has hash_type {entry.get('hash_type')!r}. Write sha256.")
        if (bundle / name).is_file():
            digest = hashlib.sha256((bundle / name).read_bytes()).hexdigest()
            if digest != entry.get("hash_val"):
                raise ValueError(f"{LARGE_FILES}: {name} here has the sha256 {digest}, not hash_val. Upload it anew.")
    files = {path.relative_to(bundle).as_posix(): path for path in bundle.rglob("*") if path.is_file()}
    large = {name for name, path in files.items() if path.stat().st_size > LARGEST_BYTES}
    missing = sorted(name for name in large - listed.keys() if not name.startswith("runs/"))
    if missing:
        raise ValueError(
            f"larger than 25 MB: {', '.join(missing)}. Shrink, do not ship, or list in {LARGE_FILES} with path, url, "
            "hash_val and hash_type: sha256."
        )


def check_zoo_metadata(bundle: Path) -> None:
    """Beside MONAI's schema the zoo shows a bundle's name and the measures that its weights reach.

    Args:
        bundle: its folder.
    """
    metadata = read_json(bundle / "configs" / "metadata.json")
    if not metadata.get("name"):
        raise ValueError("metadata.json: name is missing, under which the model zoo shows the bundle. Add it.")
    metrics = metadata.get("eval_metrics", {})
    numbers = isinstance(metrics, dict) and all(isinstance(value, int | float) for value in metrics.values())
    if not numbers or (metadata.get("weights") and not metrics):
        raise ValueError(
            f"metadata.json: eval_metrics must hold the numbers that the weights reach, got {metrics!r}. Copy them "
            'from the evaluation, {"dice": 0.83, ...}.'
        )


def check_packed_readme(bundle: Path) -> None:
    """The README as it is packed leads to packed files, and its commands run in the bundle's folder.

    Args:
        bundle: its folder.
    """
    files = packed_files(bundle)
    text = files["docs/README.md"].decode()
    if PACKED_PLACE not in text:
        raise ValueError(
            "docs/README.md: Commands must say 'From the root of the repository.', which packing rewrites to "
            f"'{PACKED_PLACE}'. Add it."
        )
    dead = dead_links(text, files)
    if dead:
        raise ValueError(f"docs/README.md, as packed: {', '.join(dead)} leads to no file. Correct the link.")
    wrong = wrong_commands(text, packed_configurations(bundle))
    if wrong:
        raise ValueError(f"docs/README.md, as packed: {'; '.join(wrong)}. Correct the command.")

# SPDX-License-Identifier: Apache-2.0
"""Virtual environments of MONAI Label and MONAI Deploy on a machine without a GPU: ``environment(name, folder)``.

Both packages ask for CUDA's libraries (torchvision, sam2, cuCIM): here torch comes first, they come without their
dependencies, and what they import comes after.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock

# MONAI Label imports torchvision for two functions that no bundle calls; the package is 3 GB of CUDA on a CPU machine.
TORCHVISION_UTILS = '''"""Stands in for torchvision, of which MONAI Label imports these two names."""


def make_grid(*args, **kwargs):
    raise NotImplementedError


def save_image(*args, **kwargs):
    raise NotImplementedError
'''

WEB = "uvicorn fastapi python-multipart httpx requests requests-toolbelt pydantic pydantic-settings python-dotenv"
HELPERS = "schedule timeloop expiringdict expiring_dict cachetools watchdog einops pyyaml filelock pyjwt google-auth"
ARRAYS = "numpy scipy scikit-learn scikit-image shapely pynrrd numpymaxflow nibabel itk pillow matplotlib tqdm psutil"
OTHERS = "bcrypt passlib girder-client openslide-python openslide-bin pytorch-ignite fire gdown lmdb tensorboard"

# One list a call of pip, in this order. "--no-deps" holds for its call alone.
LABEL: tuple[Sequence[str], ...] = (
    ["torch>=2.6,<2.14"],
    ["--no-deps", "monai==1.6.1", "monailabel==0.8.5", "pydicom-seg", "jsonschema==3.2.0", "SimpleITK"],
    [*WEB.split(), *HELPERS.split(), *ARRAYS.split(), *OTHERS.split(), "setuptools<81", "attrs", "pyrsistent", "six"],
    ["pydicom<3", "pynetdicom<3", "dicomweb-client<0.60"],
)
DEPLOY: tuple[Sequence[str], ...] = (
    ["torch>=2.6,<2.14"],
    ["--no-deps", "monai==1.6.1", "monai-deploy-app-sdk==4.0.0", "holoscan-cu13", "holoscan-cli"],
    ["numpy", "scipy", "tqdm", "colorama", "typeguard", "nibabel", "pillow", "pydicom", "highdicom", "cloudpickle"],
    ["wheel-axle-runtime", "tritonclient[http,grpc]", "psutil", "python-on-whales", "packaging", "pyyaml", "requests"],
)
RECIPES = {"label": LABEL, "deploy": DEPLOY}


def environment(name: str, folder: Path) -> Path:
    """The environment's ``bin`` folder; built where it is not there yet (some minutes, 1 to 3 GB).

    Args:
        name: "label" or "deploy".
        folder: holds the environment ``folder/name``; kept between runs.

    Returns:
        The folder with ``python`` and the platform's commands.

    Raises:
        RuntimeError: where pip fails, with the end of its output.
    """
    root = folder / name
    done = root / "complete"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(str(folder / f"{name}.lock")):
        if not done.is_file():
            _run([sys.executable, "-m", "venv", "--clear", str(root)])
            for packages in RECIPES[name]:
                _run([str(root / "bin" / "python"), "-m", "pip", "install", "--quiet", *packages])
            if name == "label":
                _stand_in_for_torchvision(root)
            done.touch()
    return root / "bin"


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"'{' '.join(command)}' failed:\n{(done.stdout + done.stderr)[-3000:]}")


def _stand_in_for_torchvision(root: Path) -> None:
    (packages,) = root.glob("lib/python*/site-packages")
    (packages / "torchvision").mkdir(exist_ok=True)
    (packages / "torchvision" / "__init__.py").write_text("")
    (packages / "torchvision" / "utils.py").write_text(TORCHVISION_UTILS)

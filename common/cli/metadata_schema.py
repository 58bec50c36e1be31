# SPDX-License-Identifier: Apache-2.0
"""What a bundle's metadata.json must hold, as a JSON schema: MONAI's rules in our own statement, for use offline.

Beyond MONAI's: the changelog holds the version (checked by ``verify``, a schema cannot say it), and ``weights`` names
the weight files that the bundle ships, none for a bundle that is not trained.

Reference: MONAI Bundle Specification, metadata.json.
"""

from __future__ import annotations

from typing import Any

TEXT = {"type": "string", "minLength": 1}
VERSION = {"type": "string", "pattern": r"^[0-9]+\.[0-9]+(\.[0-9]+)?([.+a-z0-9-]*)$"}
SIZE = {
    "anyOf": [
        {"type": "integer", "minimum": 1},
        {"type": "string", "pattern": r"^(\*|[0-9 */+\-pn()]+)$", "minLength": 1},
    ]
}

TENSOR: dict[str, Any] = {
    "type": "object",
    "required": [
        "type",
        "format",
        "num_channels",
        "spatial_shape",
        "dtype",
        "value_range",
        "is_patch_data",
        "channel_def",
    ],
    "properties": {
        "type": TEXT,
        "format": TEXT,
        "num_channels": {"type": "integer", "minimum": 1},
        "spatial_shape": {"type": "array", "items": SIZE, "minItems": 1},
        "dtype": {"enum": ["float16", "bfloat16", "float32", "float64", "uint8", "int16", "int32", "int64", "bool"]},
        "value_range": {"type": "array", "items": {"type": "number"}, "maxItems": 2},
        "is_patch_data": {"type": "boolean"},
        "channel_def": {"type": "object", "patternProperties": {r"^[0-9]+$": TEXT}, "additionalProperties": False},
    },
}

TENSORS: dict[str, Any] = {"type": "object", "additionalProperties": TENSOR, "minProperties": 1}

SCHEMA: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "required": [
        "schema",
        "version",
        "changelog",
        "monai_version",
        "pytorch_version",
        "numpy_version",
        "required_packages_version",
        "task",
        "description",
        "authors",
        "copyright",
        "network_data_format",
        "weights",
    ],
    "properties": {
        "schema": {"type": "string", "pattern": r"^https://.+\.json$"},
        "version": VERSION,
        "changelog": {"type": "object", "additionalProperties": TEXT, "minProperties": 1},
        "monai_version": VERSION,
        "pytorch_version": VERSION,
        "numpy_version": VERSION,
        "required_packages_version": {"type": "object", "additionalProperties": VERSION},
        "task": TEXT,
        "description": TEXT,
        "authors": TEXT,
        "copyright": TEXT,
        "weights": {"type": "array", "items": {"type": "string", "pattern": r"^[\w.-]+\.pt$"}, "uniqueItems": True},
        "network_data_format": {
            "type": "object",
            "required": ["inputs", "outputs"],
            "properties": {"inputs": TENSORS, "outputs": TENSORS},
        },
    },
}

"""`measurements.json`: what was timed, when and where; the only file that differs between runs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qcompile.artifact.canonical import canonical_json
from qcompile.artifact.files import write_file
from qcompile.artifact.layout import MEASUREMENTS
from qcompile.errors import ArtifactError


def write_measurements(directory: Path, values: Mapping[str, Any]) -> None:
    """Write or replace the measurements of an artifact: JSON values, latencies in ms with their conditions.

    Raises:
        StorageError: no space or no permission.
    """
    write_file(directory / MEASUREMENTS, canonical_json(values).encode())


def read_measurements(directory: Path) -> dict[str, Any]:
    """The measurements of an artifact, empty where there are none.

    Raises:
        ArtifactError: the file is damaged.
    """
    try:
        values = json.loads((directory / MEASUREMENTS).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ArtifactError(
            f"{MEASUREMENTS} is damaged: {error}", hint="delete it; nothing else depends on it"
        ) from error
    if not isinstance(values, dict):
        raise ArtifactError(f"{MEASUREMENTS} is damaged: it is not an object", hint="delete it")
    return values

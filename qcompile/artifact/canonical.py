"""JSON with one spelling: equal values give equal bytes."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np

from qcompile.errors import InternalError


def canonical_json(value: Any) -> str:
    """Sorted keys, one item per line, a newline at the end; dataclasses and NumPy scalars turn plain.

    Raises:
        InternalError: NaN, infinity, or something that has no JSON form.
    """
    try:
        text = json.dumps(value, sort_keys=True, indent=1, allow_nan=False, ensure_ascii=False, default=_plain)
    except (TypeError, ValueError) as error:
        raise InternalError(f"cannot write {type(value).__name__} as JSON: {error}") from error
    return text + "\n"


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if hasattr(value, "items"):  # read-only mappings
        return dict(value.items())
    raise TypeError(f"{type(value).__name__} has no JSON form")

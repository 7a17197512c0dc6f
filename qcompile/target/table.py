"""Measured costs of one device as a file: made where the device is, used to plan where it is not."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qcompile.errors import UsageError
from qcompile.target.backend import Measurement
from qcompile.target.cost import CostCache

_FORMAT = 1
_HINT = "files of costs are made on the device itself; see docs/cuda.md"


@dataclass(frozen=True)
class MeasuredCosts:
    """Seconds of kernels by `KernelWork.key`, and the conditions.

    Attributes:
        target: whose kernels they are.
        device: what measured them.
        compiler: its version and that of the generator (`Backend.fingerprint`); other versions make other kernels.
        threads: of the measurements.
        rows: by key.
    """

    target: str
    device: str
    compiler: str
    threads: int
    rows: dict[str, Measurement]

    def seconds(self, key: str) -> float | None:
        """The median of a kernel, or None where it is not in the table."""
        found = self.rows.get(key)
        return None if found is None else found.median

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; kernels sorted by key."""
        rows = {key: [m.median, m.p90, m.runs] for key, m in sorted(self.rows.items())}
        return {
            "format": _FORMAT, "target": self.target, "device": self.device, "compiler": self.compiler,
            "threads": self.threads, "seconds": rows,
        }  # fmt: skip

    def write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.to_json(), indent=1) + "\n")


def export_costs(cache: CostCache, target: str, compiler: str, threads: int = 1) -> MeasuredCosts:
    """Everything a cache holds of its device for one compiler."""
    return MeasuredCosts(target, cache.device, compiler, threads, cache.rows(threads, compiler))


def import_costs(costs: MeasuredCosts, cache: CostCache, keys: Iterable[str] | None = None) -> int:
    """Put a table into a cache of the same device, as if it had been measured here; says how many kernels."""
    chosen = set(costs.rows if keys is None else keys) & set(costs.rows)
    for key in sorted(chosen):
        cache.put_row(key, costs.compiler, costs.rows[key], {"imported": True})
    return len(chosen)


def read_costs(path: Path, target: str) -> MeasuredCosts:
    """A table from its file.

    Raises:
        UsageError: there is none, it cannot be read, or it is of another target.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        rows = {
            str(key): Measurement(float(median), float(p90), int(runs), int(found["threads"]))
            for key, (median, p90, runs) in found["seconds"].items()
        }
        made = MeasuredCosts(found["target"], found["device"], found["compiler"], int(found["threads"]), rows)
        version = found["format"]
    except OSError as error:
        raise UsageError(f"cannot read the costs {path}: {error.strerror or error}", hint=_HINT) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{path} is no file of costs: {error!r}", hint=_HINT) from None
    if version != _FORMAT:
        raise UsageError(f"{path} has format {version}; this qcompile reads {_FORMAT}", hint=_HINT)
    if any(not (math.isfinite(m.median) and m.median > 0) for m in rows.values()):
        raise UsageError(f"{path} holds a time that is none", hint=_HINT)
    if made.target != target:
        raise UsageError(f"{path} holds costs of {made.target}, not of {target}", hint=f"use --target {made.target}")
    return made

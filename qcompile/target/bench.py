"""Measuring the kernels whose costs are not known yet."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from qcompile.errors import DeviceError
from qcompile.target.backend import Backend, Measurement
from qcompile.target.cost import CostCache
from qcompile.target.program import Kernel, KernelWork, Program

AT_A_TIME = 8
"""Kernels measured between two writes to the cache: what an interruption loses."""


class Measured(dict[str, Measurement]):
    """Measurements by `KernelWork.key`; `fresh` counts those that were made just now."""

    fresh: int = 0


def measure_missing(
    works: Mapping[str, tuple[KernelWork, Kernel, Program]],
    backend: Backend,
    costs: CostCache,
    threads: int,
    progress: Callable[[str, int, int], None],
) -> Measured:
    """The costs of all works, by key: those the cache holds, and the others measured and put there.

    A run that is interrupted takes up where it stopped, and several runs at once share what they find.
    """
    version = backend.fingerprint()
    described = [work for work, _, _ in works.values()]
    known = costs.get_many(described, threads, version)
    missing = [key for key in works if key not in known]
    for start in range(0, len(missing), AT_A_TIME):
        part = missing[start : start + AT_A_TIME]
        progress("measure", start, len(missing))
        lost: DeviceError | None = None
        results: Sequence[Measurement | None]
        try:
            results = backend.measure([works[key][1:] for key in part], threads)
        except DeviceError as error:
            # A device that was lost half-way: what it measured before is kept.
            lost, results = error, error.measured or [None] * len(part)
        noted = conditions()
        for key, measurement in zip(part, results, strict=True):
            if measurement is None:
                continue
            costs.put(works[key][0], version, measurement, {**noted, "resident": works[key][0].resident})
        if lost is not None:
            raise lost
    if missing:
        progress("measure", len(missing), len(missing))
        # Read back, because the cache brings all it holds to one clock.
        known = costs.get_many(described, threads, version)
    found = Measured(known)
    found.fresh = len(missing)
    return found


def available_cores() -> int:
    """Processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def conditions() -> dict[str, Any]:
    """What is worth knowing about the machine beside a measurement: date, load, processors this process may use."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "usable_cpus": available_cores(),
    }

"""Shared by all tests: one thread per worker, and caches of their own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Before anything imports NumPy or torch: two workers with two threads each on two cores would spin on each other.
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")


# A busy machine is slow, not wrong.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Measured costs are kept for the run and never mixed with the user's."""
    folder = tmp_path_factory.mktemp("cache")
    before = os.environ.get("QCOMPILE_CACHE_DIR")
    os.environ["QCOMPILE_CACHE_DIR"] = str(folder)
    yield folder
    if before is None:
        del os.environ["QCOMPILE_CACHE_DIR"]
    else:
        os.environ["QCOMPILE_CACHE_DIR"] = before

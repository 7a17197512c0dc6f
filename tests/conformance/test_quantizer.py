"""The native quantiser gives the integers of its definition, for every kind of float."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from qcompile.ir import Array, Grid
from qcompile.semantics.grids import dequantize, quantize
from targets._tvm.host import write_boundary
from targets._tvm.quantizer import BOUNDARY, NativeQuantizer

GRIDS = (
    Grid(0.017, 128, "u8"), Grid(1.0, 0, "u4"), Grid(2.0**-5, 100, "u8"), Grid(3.7e-3, 255, "u8"),
    Grid(1e20, 3, "u6"), Grid(1.7e-20, 0, "u8"), Grid(0.1, 1, "u2"),
)  # fmt: skip
PROCESSORS = {"avx512f": "cascadelake", "avx2": "haswell"}


@pytest.fixture(scope="module", params=PROCESSORS)
def native(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> NativeQuantizer:
    from qcompile.pm.registry import host_features

    if request.param not in host_features():
        pytest.skip(f"this processor lacks {request.param}")
    folder: Path = tmp_path_factory.mktemp(request.param)
    write_boundary({"kind": "llvm", "mtriple": "x86_64-unknown-linux-gnu", "mcpu": PROCESSORS[request.param]}, folder)
    return NativeQuantizer(folder / BOUNDARY)


def samples(grid: Grid) -> dict[str, Array]:
    """float32 arrays: usual values, ties and their neighbours, extremes, and random bit patterns, all finite."""
    rng = np.random.default_rng(0)
    ties = ((np.arange(-700, 700) + 0.5) * grid.scale).astype(np.float32)
    bits = rng.integers(0, 0x7F800000, 50_000).astype(np.uint32).view(np.float32)
    top = np.finfo(np.float32).max
    return {
        "usual": (100 * grid.scale * rng.standard_normal(30_011)).astype(np.float32),
        "ties": ties,
        "above ties": np.nextafter(ties, np.float32(np.inf)),
        "below ties": np.nextafter(ties, np.float32(-np.inf)),
        "near ties": (ties.astype(np.float64) * (1 + rng.uniform(-2e-6, 2e-6, ties.size))).astype(np.float32),
        "extremes": np.array([top, -top, 0.0, -0.0, 1e-45, -1e-45, 1.2e-38, 1.0], dtype=np.float32),
        "patterns": (bits * rng.choice([-1, 1], bits.size)).astype(np.float32),
        "one": np.array([0.3], dtype=np.float32),
    }


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_equals_the_definition(native: NativeQuantizer, grid: Grid) -> None:
    for name, x in samples(grid).items():
        found, expected = native.quantize(x, grid), quantize(x, grid)
        assert found is not None
        assert (name, found.dtype, found.shape) == (name, expected.dtype, expected.shape)
        assert (name, np.flatnonzero(found != expected).tolist()) == (name, [])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_left_to_the_one_who_reports_it(native: NativeQuantizer, bad: float) -> None:
    x = np.ones((3, 67), dtype=np.float32)
    for at in (0, 70, 191, 192, x.size - 1):
        spoilt = x.copy()
        spoilt.flat[at] = bad
        assert native.quantize(spoilt, GRIDS[0]) is None
    # One bad call does not spoil the next.
    assert native.quantize(x, GRIDS[0]) is not None


def test_unusual_grids_are_left_to_the_definition(native: NativeQuantizer) -> None:
    x = np.ones(3, dtype=np.float32)
    assert native.quantize(x, Grid(1e-39, 0, "u8")) is None
    assert native.quantize(x, Grid(1e39, 0, "u8")) is None
    assert native.quantize(x, Grid(1.0, 0, "i32")) is None


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_reals_are_looked_up_as_they_would_be_computed(grid: Grid) -> None:
    few = np.arange(1 << int(grid.dtype[1:]), dtype=np.uint8)
    many = np.concatenate([few] * 256)
    one_by_one = np.concatenate([dequantize(few[i : i + 1], grid) for i in range(few.size)])
    assert np.array_equal(dequantize(many, grid), np.concatenate([one_by_one] * 256))

"""calibrate-ranges: histograms, clipping searches, streaming."""

from __future__ import annotations

import dataclasses
import math
import tracemalloc
from collections.abc import Iterator

import numpy as np
import pytest

from passes.analysis.calibrate_ranges import CalibrateRanges
from passes.analysis.clip_search import ClipError, least_squares_clip
from passes.analysis.histogram import BINS, Histogram
from qcompile.errors import DataError, UsageError
from qcompile.exec.tensors import to_tensor
from qcompile.ir import Array, Graph, GraphBuilder, TensorType
from qcompile.pm.base import Batches, PassContext
from qcompile.pm.facts import RANGES, Range
from qcompile.semantics.grids import activation_grid, fake_quantize
from qcompile.target.model import Target

TARGET = Target("none", "", "")


def relu_net(width: int = 16) -> Graph:
    """x → first (identity) → relu → last (three of its elements)."""
    b = GraphBuilder("net", "float")
    x = b.input("x", TensorType((-1, width), "f32"))
    eye = np.eye(width, dtype=np.float32)
    h = b.add("linear", [x], name="first", consts={"w": eye})
    r = b.add("clip", [h], name="relu", attrs={"lo": 0.0})
    b.output("y", b.add("linear", [r], name="last", consts={"w": eye[:3]}))
    return b.build()


def stream(x: Array, size: int) -> Batches:
    return lambda: ({"x": x[i : i + size]} for i in range(0, len(x), size))


def calibrate(x: Array, size: int = 32, **options: object) -> dict[str, Range]:
    ctx = PassContext(TARGET, calibration=stream(x, size))
    pass_ = dataclasses.replace(CalibrateRanges(), **options)  # type: ignore[arg-type]
    return dict(pass_.run(relu_net(x.shape[1]), ctx).graph.notes[RANGES])


def gaussian(n: int = 2048, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=(n, 16)).astype(np.float32)


def hist_of(*parts: Array) -> Histogram:
    hist = Histogram()
    for part in parts:
        assert hist.add(to_tensor(part))
    return hist


class TestHistogram:
    def test_counts_every_element_and_zeros_apart(self) -> None:
        x = np.maximum(gaussian(), 0)
        hist = hist_of(x)
        assert hist.counts.sum() + hist.zeros == hist.seen == x.size
        assert hist.zeros == (x == 0).sum()
        assert (hist.lo, hist.hi) == (0.0, float(x.max()))

    def test_does_not_depend_on_order_or_split(self) -> None:
        x = (gaussian() * np.geomspace(1e-4, 50, 2048)[:, None]).astype(np.float32)
        whole = hist_of(x)
        for parts in (np.array_split(x, 37), np.array_split(x[::-1], 5)):
            other = hist_of(*parts)
            assert (other.exponent, other.start, other.zeros) == (whole.exponent, whole.start, whole.zeros)
            assert np.array_equal(other.counts, whole.counts)

    def test_bins_agree_with_numpy_after_widening(self) -> None:
        x = np.concatenate([gaussian(64), 100 * gaussian(64, 1), [[-731.0] * 16]]).astype(np.float32)
        hist = hist_of(*np.array_split(x, 9))
        edges = (hist.start + np.arange(BINS + 1)) * math.ldexp(1.0, hist.exponent)
        assert np.array_equal(hist.counts, np.histogram(x, edges)[0])
        assert (edges[-1] - edges[0]) / (x.max() - x.min()) < 2.01  # not wider than it must be

    @pytest.mark.parametrize("value", [0.0, 5.0, -3.0, 1e-20, 1e20])
    def test_constant(self, value: float) -> None:
        hist = hist_of(np.full((4, 4), value, np.float32))
        assert hist.counts.sum() + hist.zeros == 16
        assert ClipError(hist)(min(value, 0), max(value, 0), 8) <= (abs(value) / 255) ** 2

    def test_far_from_zero(self) -> None:
        hist = hist_of(gaussian() * 1e-3 + 1000)
        assert hist.counts.sum() == hist.seen

    def test_percentile(self) -> None:
        x = gaussian(8192)
        hist = hist_of(np.maximum(x, 0))
        assert hist.percentile(99.0) == pytest.approx(np.percentile(np.maximum(x, 0), 99.0), rel=0.01)
        assert hist.percentile(20) <= 0.01


class TestClipSearch:
    @pytest.mark.parametrize("bits", [4, 5, 6, 8])
    @pytest.mark.parametrize(("lo", "hi"), [(-4.0, 4.0), (-1.5, 2.5), (-0.3, 3.0)])
    def test_expected_error_is_the_measured_error(self, bits: int, lo: float, hi: float) -> None:
        x = gaussian(8192)
        measured = np.square(fake_quantize(x, activation_grid(lo, hi, bits)).astype(np.float64) - x).mean()
        assert ClipError(hist_of(x))(lo, hi, bits) == pytest.approx(measured, rel=0.01)

    def test_finds_the_known_optimum_of_a_gaussian(self) -> None:
        # Uniform quantisers for N(0, 1), 16 levels: Max (1960) gives step 0.335 for symmetric levels, error
        # 0.01154.
        x = gaussian(65536)
        error = ClipError(hist_of(x))
        lo, hi = least_squares_clip(error, float(x.min()), float(x.max()), 4)
        assert (hi - lo) / 15 == pytest.approx(0.335, abs=0.02)
        assert error(lo, hi, 4) == pytest.approx(0.0116, rel=0.03)

    def test_is_never_worse_than_everything_seen(self) -> None:
        rng = np.random.default_rng(3)
        for x in (
            rng.standard_t(2, (4096, 4)),
            rng.uniform(-1, 3, (4096, 4)),
            -rng.exponential(size=(4096, 4)),
        ):
            hist = hist_of(x.astype(np.float32))
            error = ClipError(hist)
            lo, hi = min(hist.lo, 0.0), max(hist.hi, 0.0)
            for bits in (4, 8):
                found = least_squares_clip(error, lo, hi, bits)
                assert lo <= found[0] <= 0 <= found[1] <= hi
                assert error(*found, bits) <= error(lo, hi, bits)


class TestPass:
    def test_each_width_contains_zero_and_errs_less_with_more_bits(self) -> None:
        for range_ in calibrate(gaussian()).values():
            assert sorted(range_.clip) == sorted(range_.error) == [4, 5, 6, 7, 8]
            assert range_.samples == 2048
            for lo, hi in range_.clip.values():
                assert lo <= 0 <= hi
            errors = [range_.error[bits] for bits in (4, 5, 6, 7, 8)]
            assert errors == sorted(errors, reverse=True)
            assert errors[0] > 10 * errors[2] > 0

    def test_one_sided_ranges_stay_one_sided(self) -> None:
        ranges = calibrate(gaussian())
        assert ranges["relu"].lo == 0.0
        assert all(lo == 0.0 for lo, _ in ranges["relu"].clip.values())
        assert all(lo < 0 for lo, _ in ranges["x"].clip.values())

    def test_methods_differ_as_they_should(self) -> None:
        x = gaussian()
        x[0, 0] = 60.0  # one outlier
        everything, least, inner = (calibrate(x, method=m)["relu"].clip for m in ("minmax", "mse", "percentile"))
        assert everything[4][1] == everything[8][1] == 60.0
        assert least[4][1] < 12
        assert inner[4][1] == inner[8][1] < 8
        assert least[4][1] < least[8][1]
        assert calibrate(x, method="percentile", percentile=100.0)["relu"].clip == everything

    def test_values_no_layer_reads_keep_everything_seen(self) -> None:
        x = gaussian()
        x[0, 0] = 60.0
        range_ = calibrate(x)["last"]
        assert set(range_.clip.values()) == {(range_.lo, range_.hi)}

    def test_constant_activation(self) -> None:
        range_ = calibrate(np.zeros((8, 16), np.float32))["relu"]
        assert activation_grid(*range_.clip[8], 8).scale == 1.0
        assert range_.error[4] == 0.0

    def test_is_deterministic(self) -> None:
        assert calibrate(gaussian()) == calibrate(gaussian())
        assert calibrate(gaussian(), size=32) == calibrate(gaussian(), size=100)

    def test_memory_does_not_grow_with_the_samples(self) -> None:
        def peak(batches: int) -> int:
            def generate() -> Iterator[dict[str, Array]]:
                rng = np.random.default_rng(0)
                for _ in range(batches):
                    yield {"x": rng.normal(size=(256, 16)).astype(np.float32)}

            tracemalloc.start()
            CalibrateRanges().run(relu_net(), PassContext(TARGET, calibration=generate))
            found = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            return found

        peak(1)  # imports and first uses
        few, many = peak(2), peak(100)
        assert many < few + 200_000  # 100 batches hold 1.6 MB

    def test_bad_data(self) -> None:
        x = gaussian(64)
        x[40, 3] = np.nan
        with pytest.raises(DataError, match="input 'x' holds NaN or infinity in sample 40"):
            calibrate(x)
        with pytest.raises(DataError, match="no samples"):
            calibrate(gaussian(0))
        ctx = PassContext(TARGET, calibration=lambda: iter([{"y": gaussian(4)}]))
        with pytest.raises(DataError, match="no array 'x'"):
            CalibrateRanges().run(relu_net(), ctx)
        ctx = PassContext(TARGET, calibration=lambda: iter([{"x": gaussian(4)[:, :5]}]))
        with pytest.raises(DataError, match="shape"):
            CalibrateRanges().run(relu_net(), ctx)
        ctx = PassContext(TARGET, calibration=stream(gaussian(4), 4))
        with pytest.raises(DataError, match="becomes infinite"):
            CalibrateRanges().run(_overflowing(), ctx)

    def test_bad_options(self) -> None:
        with pytest.raises(UsageError, match="unknown calibration method 'kl'"):
            calibrate(gaussian(4), method="kl")
        with pytest.raises(UsageError, match="percentile"):
            calibrate(gaussian(4), method="percentile", percentile=1.0)


def _overflowing() -> Graph:
    b = GraphBuilder("net", "float")
    x = b.input("x", TensorType((-1, 16), "f32"))
    for i in range(3):
        x = b.add("linear", [x], name=f"l{i}", consts={"w": np.full((16, 16), 1e20, np.float32)})
    b.output("y", x)
    return b.build()

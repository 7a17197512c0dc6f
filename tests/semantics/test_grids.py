"""Grids and bit packing."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from qcompile.semantics.grids import (
    activation_grid,
    dequantize,
    fake_quantize,
    pack_bits,
    packed_bytes,
    quantize,
    quantize_weights,
    unpack_bits,
    weight_range,
    weight_scales,
)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("signed", [False, True])
def test_packing_round_trip_of_every_two_byte_pattern(bits: int, signed: bool) -> None:
    data = b"".join(bytes(pair) for pair in itertools.product(range(256), range(256)))
    count = len(data) * 8 // bits
    values = unpack_bits(data, bits, count, signed)
    assert pack_bits(values, bits) == data[: packed_bytes(count, bits)] or (count * bits) % 8
    assert np.array_equal(unpack_bits(pack_bits(values, bits), bits, count, signed), values)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("count", [1, 2, 3, 5, 7, 13])
def test_packing_odd_lengths(bits: int, count: int) -> None:
    lo, hi = weight_range(bits)
    values = np.random.default_rng(count).integers(lo, hi + 1, count).astype(np.int8)
    packed = pack_bits(values, bits)
    assert len(packed) == packed_bytes(count, bits)
    assert np.array_equal(unpack_bits(packed, bits, count, signed=True), values)


def test_too_few_bytes_are_refused() -> None:
    with pytest.raises(ValueError, match="buffer is smaller"):
        unpack_bits(b"\0" * 5, 6, 8, signed=True)


@pytest.mark.parametrize("bits", range(4, 9))
@pytest.mark.parametrize(("lo", "hi"), [(0.0, 6.0), (-1.0, 3.0), (-5.0, 0.0), (2.0, 3.0), (-1e30, 1e30), (0.0, 0.0)])
def test_zero_is_on_the_grid(bits: int, lo: float, hi: float) -> None:
    grid = activation_grid(lo, hi, bits)
    assert dequantize(quantize(np.zeros(1), grid), grid) == 0.0
    assert 0 <= grid.zero < 1 << bits


def test_quantization_error_is_half_a_step_inside_the_range() -> None:
    grid = activation_grid(-1.0, 3.0, 8)
    x = np.linspace(-0.99, 2.99, 1001)
    assert np.abs(fake_quantize(x, grid) - x).max() <= grid.scale / 2 + 1e-6


@pytest.mark.parametrize("bits", range(2, 9))
def test_weights_stay_in_range_and_zero_channels_are_kept(bits: int) -> None:
    w = np.random.default_rng(0).standard_normal((4, 3, 3, 3)).astype(np.float32)
    w[2] = 0
    q = quantize_weights(w, bits, weight_scales(w, bits))
    lo, hi = weight_range(bits)
    assert q.min() >= lo and q.max() <= hi and not q[2].any() and q[0].any()


def test_all_integers_are_used_but_the_lowest_byte() -> None:
    assert [weight_range(bits) for bits in (2, 3, 4, 7, 8)] == [(-2, 1), (-4, 3), (-8, 7), (-64, 63), (-127, 127)]
    w = np.array([[-1.0, 0.5, 0.25], [1.0, -0.5, 0.25]])
    for bits, scales in ((8, [1 / 127, 1 / 127]), (4, [1 / 8, 1 / 7])):
        clipping_nothing = np.maximum(w.max(axis=1) / weight_range(bits)[1], w.min(axis=1) / weight_range(bits)[0])
        np.testing.assert_allclose(clipping_nothing, scales)
        assert (weight_scales(w, bits) <= clipping_nothing + 1e-12).all()
    assert (quantize_weights(w, 4, np.array([1 / 8, 1 / 7])) == [[-8, 4, 2], [7, -4, 2]]).all()


def test_clipping_search_beats_the_maximum() -> None:
    w = np.random.default_rng(0).standard_normal((8, 256)).astype(np.float32)
    best = weight_scales(w, 4)
    plain = np.abs(w).max(axis=1) / 7

    def error(scales: np.ndarray) -> float:
        return float(np.square(quantize_weights(w, 4, scales) * scales[:, None] - w).sum())

    assert error(best) < error(plain)


def test_a_single_number_is_quantized_like_an_array() -> None:
    grid = activation_grid(-1.0, 1.0, 8)
    assert quantize(np.asarray(0.5), grid) == quantize(np.array([0.5]), grid)[0]

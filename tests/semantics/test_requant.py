"""The one rounding rule against exact rational arithmetic."""

from __future__ import annotations

from fractions import Fraction
from math import floor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcompile.errors import OverflowProofError
from qcompile.semantics.dyadic import dyadic
from qcompile.semantics.kits import Interval, IntervalKit, NumpyKit
from qcompile.semantics.scalar import requant

KIT = NumpyKit()
U8 = (0, 255)


def exact(acc: int, m: int, e: int, zp: int, lo: int, hi: int) -> int:
    """floor(acc·m / 2^e + 1/2) + zp, clipped: round half up in rationals."""
    return min(max(floor(Fraction(acc * m, 1 << e) + Fraction(1, 2)) + zp, lo), hi)


def multipliers() -> list[tuple[int, int]]:
    """64 pairs (m, e): random mantissas over all useful shifts, the two ends, powers of two, above 1."""
    rng = np.random.default_rng(0)
    pairs = [
        (int(m), int(e)) for m, e in zip(rng.integers(1 << 30, 1 << 31, 52), rng.integers(24, 50, 52), strict=True)
    ]
    ends = [(1 << 30, 30), (1 << 30, 31), ((1 << 31) - 1, 31), (1 << 30, 29), (1 << 30, 26), (3 << 29, 30)]
    return pairs + ends + [(1 << 30, 38), (-(1 << 30), 34), (0, 1), ((1 << 31) - 1, 62), (1 << 30, 25), (12345, 14)]


@pytest.mark.parametrize(("m", "e"), multipliers())
def test_every_int16_accumulator(m: int, e: int) -> None:
    acc = np.arange(-(1 << 15), 1 << 15, dtype=np.int64)
    got = requant(KIT, [acc], [m], e, (0,), 3, -1000, 1000)
    want = [exact(int(a), m, e, 3, -1000, 1000) for a in acc]
    assert np.array_equal(got, want)


def test_64_multipliers_are_tested() -> None:
    assert len(set(multipliers())) >= 64


def test_a_million_random_int32() -> None:
    rng = np.random.default_rng(1)
    acc = rng.integers(-(1 << 31), 1 << 31, 10**6)
    m = rng.integers(1 << 30, 1 << 31, 10**6)
    e = rng.integers(1, 63, 10**6)
    acc[:4] = [-(1 << 31), (1 << 31) - 1, 0, -1]
    got = requant(KIT, [acc], [m], e, (0,), 0, -(1 << 31), (1 << 31) - 1)
    want = [
        exact(a, b, c, 0, -(1 << 31), (1 << 31) - 1)
        for a, b, c in zip(acc.tolist(), m.tolist(), e.tolist(), strict=True)
    ]
    assert np.array_equal(got, want)


@pytest.mark.parametrize(("acc", "want"), [(1, 1), (-1, 0), (3, 2), (-3, -1), (5, 3), (2, 1), (-2, -1)])
def test_ties_round_up(acc: int, want: int) -> None:
    assert requant(KIT, [np.int64(acc)], [1 << 30], 31, (0,), 0, -9, 9) == want


def test_two_terms_round_once() -> None:
    """0.5 + 0.5 is 1, not 2: the terms are summed before the rounding."""
    assert requant(KIT, [np.int64(1), np.int64(1)], [1 << 30, 1 << 30], 31, (0, 0), 0, -9, 9) == 1


def test_negative_multiplier_of_a_slope() -> None:
    got = requant(KIT, [np.array([-8, 8])], [1 << 30], 30, (0,), 0, -99, 99, negative=1 << 28)
    assert got.tolist() == [-2, 8]


@given(st.floats(1e-12, 2.0**29))
def test_dyadic_is_within_half_a_unit(ratio: float) -> None:
    (m,), e = dyadic([np.asarray(ratio)])
    assert 1 <= int(e) <= 62 and 0 <= int(m) < 1 << 31
    assert abs(Fraction(int(m), 1 << int(e)) - Fraction(ratio)) <= Fraction(1, 2 << int(e))


def test_dyadic_normalises_a_mantissa_that_rounds_up() -> None:
    (m,), e = dyadic([np.asarray(np.nextafter(1.0, 0.0))])
    assert (int(m), int(e)) == (1 << 30, 30)


def test_dyadic_terms_share_an_exponent() -> None:
    (big, small), e = dyadic([np.asarray(1.0), np.asarray(0.001)])
    assert int(big) == 1 << 30 and abs(int(small) / 2 ** int(e) - 0.001) < 1e-9


@given(
    st.integers(-(2**31), 2**31 - 1), st.integers(0, 2**20), st.integers(-(2**31) + 1, 2**31 - 1), st.integers(1, 62)
)  # fmt: skip
def test_interval_kit_contains_numpy_kit(lo: int, width: int, m: int, e: int) -> None:
    hi = min(lo + width, 2**31 - 1)
    bounds = requant(IntervalKit(), [Interval.of(lo, hi)], [m], e, (0,), 5, *U8)
    for acc in (lo, hi, (lo + hi) // 2):
        got = int(requant(KIT, [np.int64(acc)], [m], e, (0,), 5, *U8))
        assert bounds.lo <= got <= bounds.hi


def test_interval_kit_refuses_64_bit_overflow() -> None:
    with pytest.raises(OverflowProofError, match="beyond 64 bits"):
        requant(IntervalKit(), [Interval.of(0, 2**40)], [2**31 - 1], 31, (0,), 0, *U8)

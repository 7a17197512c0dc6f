"""F(2×2, 3×3) and F(4×4, 3×3) over the integers (Lavin and Gray 2016, "Fast Algorithms for Convolutional Neural
Networks"): what is transformed how, and what the results fit.

F(2×2, 3×3) uses 2·G for G, so the result is exactly 4 times the convolution and the requant divides by 4
as well.  Inputs in [0, q] become [0, 4q] at position (1, 1) and [−2q, 2q] elsewhere: q ≤ 63 fits uint8,
after adding 128 to the latter.  The transformed weights must fit int8: checked on the weights themselves.

F(4×4, 3×3) scales the rows of G by 24, the last by 12, whose output counts twice instead: the result is 576·y.
Transformed 8-bit inputs and weights fit int16 (|V| ≤ 17,340, |U| ≤ 144·128).  Sums may wrap: modulo 2^32 the factor
9 of 576 = 64·9 has an inverse, and 64·y = 576·y·9⁻¹ wherever |y| < 2^25, which is proved from the weights; the
requant divides by 64 as well.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from targets._tvm.builder import Expr, const, dtype_of
from targets._tvm.packing import STEP


@dataclass(frozen=True, slots=True)
class Form:
    """F(m×m, 3×3).

    Attributes:
        dtype, weights: of the transformed inputs and weights; a step of the dot product is 4 bytes of either.
        largest_input, largest_weight: what those can hold.
        anchor_bits: the accumulator is 2^anchor_bits times the convolution.
        limit: bound of the convolution below which the result is exact.
        inputs, outputs: the one-dimensional transforms of m + 2 values.
    """

    m: int
    dtype: str
    weights: str
    largest_input: int
    largest_weight: int
    anchor_bits: int
    limit: int
    inputs: Callable[[list[Expr]], list[Expr]]
    outputs: Callable[[list[Expr]], list[Expr]]

    @property
    def alpha(self) -> int:
        """Rows and columns of a transformed tile."""
        return self.m + 2

    @property
    def step(self) -> int:
        """Channels of one step."""
        return STEP // np.dtype(self.dtype).itemsize


def _inputs_2(d: list[Expr]) -> list[Expr]:
    return [d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]]


def _outputs_2(m: list[Expr]) -> list[Expr]:
    return [m[0] + m[1] + m[2], m[1] - m[2] - m[3]]


def _times(x: Expr, factor: int) -> Expr:
    return x * const(factor, dtype_of(x))


def _inputs_4(d: list[Expr]) -> list[Expr]:
    a, b = d[4] - _times(d[2], 4), d[3] - _times(d[1], 4)
    c, e = d[4] - d[2], _times(d[3] - d[1], 2)
    return [_times(d[0] - d[2], 4) + c, a + b, a - b, c + e, c - e, _times(d[1] - d[3], 4) + d[5] - d[3]]


def _outputs_4(m: list[Expr]) -> list[Expr]:
    a, b, c, d = m[1] + m[2], m[1] - m[2], m[3] + m[4], m[3] - m[4]
    return [m[0] + a + c, b + (d + d), a + _times(c, 4), b + _times(d, 8) + (m[5] + m[5])]


def outputs_4_without_factors(m: list[Expr]) -> list[Expr]:
    """The same where the weights lack the factors of the rows of G."""
    a, b, c, d = (_times(x, 4) for x in (m[1] + m[2], m[1] - m[2], m[3] + m[4], m[3] - m[4]))
    # c and d are 4 times what they are above.
    return [_times(m[0], 6) - a + m[3] + m[4], _times(m[3] - m[4], 2) - b, c - a, d + d - b + _times(m[5], 24)]


F2 = Form(2, "uint8", "int8", 63, 127, 2, 1 << 29, _inputs_2, _outputs_2)
F4 = Form(4, "int16", "int16", 255, 32767, 6, 1 << 25, _inputs_4, _outputs_4)

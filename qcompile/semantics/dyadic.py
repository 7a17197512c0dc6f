"""Dyadic numbers m / 2^e that stand for real multipliers (integer-semantics, rule 1)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from qcompile.errors import QcompileError
from qcompile.semantics.scalar import MAX_SHIFT, MULTIPLIER_BITS

Int32 = NDArray[np.int32]


def dyadic(ratios: Sequence[NDArray[np.float64]]) -> tuple[list[Int32], Int32]:
    """Multipliers for a sum of scaled terms with a common exponent.

    Args:
        ratios: real multipliers of each term, broadcastable to each other; negative ones are allowed.

    Returns:
        (m per term, e), int32, such that ratio ≈ m / 2^e with 1 ≤ e ≤ 62.  The largest |m| of each element lies in
        [2^30, 2^31) unless e was limited; a mantissa that rounds to 2^31 becomes 2^30 with e − 1.
    """
    arrays = np.broadcast_arrays(*(np.asarray(r, dtype=np.float64) for r in ratios))
    largest = np.max(np.abs(np.stack(arrays)), axis=0)
    if not np.isfinite(largest).all():
        raise QcompileError("a requantization ratio is not finite")
    if (largest >= 2.0 ** (MULTIPLIER_BITS - 1)).any():
        raise QcompileError(f"a requantization ratio of {float(largest.max()):.3g} is beyond 2^30")
    e = np.empty(largest.shape, dtype=np.int32)
    for index, value in np.ndenumerate(largest):
        e[index] = _exponent(float(value))
    ms = [np.rint(np.ldexp(a, e)).astype(np.int32) for a in arrays]
    return ms, e


def _exponent(value: float) -> int:
    """e such that round(value·2^e) lies in [2^30, 2^31), limited to [1, 62]."""
    if value == 0.0:
        return 1
    _, power = math.frexp(value)  # value = f·2^power with 0.5 ≤ f < 1
    e = MULTIPLIER_BITS - power
    if round(math.ldexp(value, e)) == 1 << MULTIPLIER_BITS:
        e -= 1
    return max(1, min(MAX_SHIFT, e))

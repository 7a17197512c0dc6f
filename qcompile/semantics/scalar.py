"""The scalar rules of the integer level, each written once over a kit (see `qcompile.semantics.kits`).

No other code of qcompile rounds or clips integers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qcompile.semantics.kits import Kit

MULTIPLIER_BITS = 31
"""A dyadic multiplier m / 2^e has |m| < 2^31."""

MAX_SHIFT = 62
"""1 ≤ e ≤ 62."""


def requant(
    k: Kit,
    terms: Sequence[Any],
    multipliers: Sequence[Any],
    e: Any,
    zeros: Sequence[int],
    zp: int,
    lo: int,
    hi: int,
    negative: Any = None,
) -> Any:
    """clip(((Σᵢ (xᵢ − zᵢ)·mᵢ + 2^(e−1)) >> e) + zp, lo, hi) in 64-bit integers: round half up, once.

    One term is the dyadic requantization of HAWQV3 (Yao et al. 2021, section 3.2); two terms are the residual
    addition, here with a single rounding.  With `negative`, a single term uses that multiplier where x − z < 0
    (LeakyReLU, PReLU).
    """
    total = None
    for x, m, z in zip(terms, multipliers, zeros, strict=True):
        centred = k.i64(x) if z == 0 else k.sub(k.i64(x), k.i64(z))
        product = k.mul(centred, k.i64(m))
        if negative is not None:
            product = k.if_negative(centred, k.mul(centred, k.i64(negative)), product)
        total = product if total is None else k.add(total, product)
    e = k.i64(e)
    half = k.shl(k.i64(1), k.sub(e, k.i64(1)))
    rounded = k.shr(k.add(total, half), e)
    return k.clip(rounded if zp == 0 else k.add(rounded, k.i64(zp)), lo, hi)


def multiply(k: Kit, x: Any, y: Any, zeros: Sequence[int]) -> Any:
    """(x − z₀)·(y − z₁): the integer product of two activations."""
    return k.mul(k.sub(k.i64(x), k.i64(zeros[0])), k.sub(k.i64(y), k.i64(zeros[1])))

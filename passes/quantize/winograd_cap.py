"""Integers whose Winograd transform fits int8, so that the exact F(2×2, 3×3) kernel stays legal at 5 and 6 bits.

The kernel multiplies U = (2G) g (2G)ᵀ of every 3×3 filter g.  Four bits always fit; of 5 and 6 bits a few filters do
not, and one of them keeps the whole layer from the kernel.  Those are pulled in, and what that costs is made up for by
all other weights of the channel.
"""

from __future__ import annotations

import numpy as np

from passes.quantize.gptq import Float, Forms, descend, quadratic_error

_G2 = np.array([[2, 0, 0], [1, 1, 1], [1, -1, 1], [0, 0, 2]])
TRANSFORM = np.kron(_G2, _G2).astype(np.float64)
"""(16, 9): U of a flattened filter (Lavin & Gray 2016, F(2×2, 3×3), G doubled)."""

DEAREST = 1.15
"""Most that the error may grow by; beyond it the layer keeps its integers and runs on another kernel."""


def transformed(q: Float) -> Float:
    """U of every filter: (R, C·9) → (R, C, 16)."""
    return np.asarray(q.reshape(len(q), -1, 9) @ TRANSFORM.T)


def _factors() -> Float:
    """Of each tap in U: index of the element and factor, (9, 9, 2); taps that enter fewer elements end in zeros."""
    found = np.zeros((9, 9, 2))
    for tap in range(9):
        used = np.flatnonzero(TRANSFORM[:, tap])
        found[tap, : len(used)] = np.stack([used, TRANSFORM[used, tap]], axis=1)
    return found


def transforms(q: Float, limit: int) -> Forms:
    """Bounds that keep every filter's transform within a limit while integers move; q (R, C·9), within it."""
    channels = q.shape[1] // 9
    factors = np.tile(_factors(), (channels, 1, 1))
    factors[..., 0] += 16 * np.repeat(np.arange(channels), 9)[:, None]
    return Forms(factors, transformed(q).reshape(len(q), -1).T, limit)


def capped(q: Float, scale: Float, w: Float, h: Float, top: int, limit: int, sweeps: int = 4) -> Float:
    """Integers close to q with |U| ≤ limit, best in (q·s − w) H (q·s − w)ᵀ by a descent that never leaves the limit.

    Args:
        q: (R, C·9), integers as floats.
        scale: (R,).
        w: (R, C·9).
        h: positive definite (C·9, C·9).
    """
    q = _inside(q, limit)
    found = descend(q[None], scale[None], w[None], h[None], top, sweeps, transforms(q, limit))
    return np.asarray(found[0])


def _inside(q: Float, limit: int) -> Float:
    """Filters beyond the limit, scaled towards zero until they fit."""
    filters = q.reshape(-1, 9).copy()
    far = np.flatnonzero(np.abs(filters @ TRANSFORM.T).max(axis=1) > limit)
    original, share = filters[far], 1.0
    while len(far):
        share *= 0.95
        filters[far] = np.trunc(original * share)
        still = np.abs(filters[far] @ TRANSFORM.T).max(axis=1) > limit
        far, original = far[still], original[still]
    return np.asarray(filters.reshape(q.shape))


def cap(q: Float, scale: Float, w: Float, h: Float, top: int, limit: int) -> Float | None:
    """The capped integers of a layer, or None where they would cost more than `DEAREST`; arguments as in `capped`."""
    if np.abs(transformed(q)).max() <= limit:
        return q
    found = capped(q, scale, w, h, top, limit)
    before = quadratic_error(q[None], scale[None], w[None], h[None]).sum()
    after = quadratic_error(found[None], scale[None], w[None], h[None]).sum()
    return found if after <= DEAREST * before else None

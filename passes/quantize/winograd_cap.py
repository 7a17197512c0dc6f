"""Integers whose Winograd transform fits int8, so that the exact F(2×2, 3×3) kernel stays legal at 5 and 6 bits.

The kernel multiplies U = (2G) g (2G)ᵀ of every 3×3 filter g.  Four bits always fit; of 5 and 6 bits a few filters do
not, and one of them keeps the whole layer from the kernel.  Those are pulled in, and what that costs is made up for by
all other weights of the channel.
"""

from __future__ import annotations

import numpy as np

from passes.quantize.gptq import Float, quadratic_error

_G2 = np.array([[2, 0, 0], [1, 1, 1], [1, -1, 1], [0, 0, 2]])
TRANSFORM = np.kron(_G2, _G2).astype(np.float64)
"""(16, 9): U of a flattened filter (Lavin & Gray 2016, F(2×2, 3×3), G doubled)."""

DEAREST = 1.15
"""Most that the error may grow by; beyond it the layer keeps its integers and runs on another kernel."""


def transformed(q: Float) -> Float:
    """U of every filter: (R, C·9) → (R, C, 16)."""
    return np.asarray(q.reshape(len(q), -1, 9) @ TRANSFORM.T)


def capped(q: Float, scale: Float, w: Float, h: Float, top: int, limit: int, sweeps: int = 4) -> Float:
    """Integers close to q with |U| ≤ limit, best in (q·s − w) H (q·s − w)ᵀ by a descent that never leaves the limit.

    Args:
        q: (R, C·9), integers as float64.
        scale: (R,).
        w: (R, C·9).
        h: positive definite (C·9, C·9).
    """
    q = _inside(q, limit)
    columns = q.shape[1]
    u = transformed(q)
    diagonal = np.diagonal(h)
    for _ in range(sweeps):
        before = q.copy()
        slope = (q * scale[:, None] - w) @ h
        for j in range(columns):
            channel, tap = divmod(j, 9)
            factor = TRANSFORM[:, tap]
            used = factor != 0
            rest = u[:, channel, used] - factor[used] * q[:, j, None]
            ends = (np.array([-limit, limit])[:, None, None] - rest) / factor[used]
            low = np.ceil(ends.min(axis=0).max(axis=1)).clip(-top, top)
            high = np.floor(ends.max(axis=0).min(axis=1)).clip(-top, top)
            best = np.rint(q[:, j] - slope[:, j] / (diagonal[j] * scale)).clip(low, high)
            step = best - q[:, j]
            if step.any():
                slope += (step * scale)[:, None] * h[j]
                u[:, channel] += step[:, None] * factor
                q[:, j] = best
        if np.array_equal(q, before):
            break
    return q


def _inside(q: Float, limit: int) -> Float:
    """Filters beyond the limit, scaled towards zero until they fit."""
    filters = q.reshape(len(q), -1, 9).copy()
    share = np.ones(filters.shape[:2])
    original = filters.copy()
    while (far := np.abs(transformed(filters.reshape(q.shape))).max(axis=2) > limit).any():
        share[far] *= 0.95
        filters[far] = np.trunc(original[far] * share[far][:, None])
    return filters.reshape(q.shape)


def cap(q: Float, scale: Float, w: Float, h: Float, top: int, limit: int) -> Float | None:
    """The capped integers of a layer, or None where they would cost more than `DEAREST`; arguments as in `capped`."""
    if np.abs(transformed(q)).max() <= limit:
        return q
    found = capped(q, scale, w, h, top, limit)
    before = quadratic_error(q[None], scale[None], w[None], h[None]).sum()
    after = quadratic_error(found[None], scale[None], w[None], h[None]).sum()
    return found if after <= DEAREST * before else None

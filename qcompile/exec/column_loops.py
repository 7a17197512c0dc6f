"""Loops over columns whose steps depend on each other, compiled: NumPy would take a call for every column.

Rows are independent, so a few of them at a time go through all columns of a block while they are in the first caches.
Arrays are C-contiguous, of one floating type; nothing is reordered or fused.  Other threads may run meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numba
import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.floating[Any]]

_LANES = 128
"""Rows that go through a block together."""


def round_block(
    wanted: Float, aim: Float, spread: Float, pivots: Float, scale: Float, low: Float, high: Float,
    q: NDArray[np.int8], errors: Float, total: Float,
) -> None:  # fmt: skip
    """Round a block of C columns from the last to the first, each making up for those rounded before it.

    Args:
        wanted: what each column should be, those behind the block made up for, (C, N); changed in place.
        aim: real weights, (C, N).
        spread: of a column's error over the columns before it, (C, C).
        pivots: (C,).
        scale: of each row, (N,).
        low, high: between which a row's integers lie, (N,).
        q, errors: integers and q·scale − aim, (C, N); written.
        total: error of each row, (N,); what the block adds is added.
    """
    _round(wanted, aim, spread, pivots, scale, low, high, q, errors, total)


def descend_block(
    slope: Float, h: Float, scale: Float, low: Float, high: Float, q: Float, moved: NDArray[np.bool_], limit: Float,
    u: Float, factors: Float,
) -> None:  # fmt: skip
    """One pass of coordinate descent over a block of C columns.

    Args:
        slope: of the error at q along each column, (C, N); changed in place.
        h: (C, C).
        scale, low, high: as in `round_block`.
        q: integers, (C, N); changed in place.
        moved: which rows changed, (N,); set where they did.
        limit: of |u|, (1,); ignored where factors are empty.
        u: linear forms of q that stay within the limit, (forms of all channels, N); changed with q.
        factors: of each column in the forms: index of u and factor, (C, uses, 2); 0 is no factor.
    """
    _descend(slope, h, scale, low, high, q, moved, limit, u, factors)


def _compiled(function: Callable[..., None]) -> Callable[..., None]:
    """Compiled when it is first called, once for each precision, and kept for the next process where that can be."""
    try:
        made = numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:  # There is no folder it could be kept in.
        made = numba.njit(nogil=True)(function)
    return cast(Callable[..., None], made)


@_compiled
def _round(
    wanted: Float, aim: Float, spread: Float, pivots: Float, scale: Float, low: Float,
    high: Float, q: NDArray[np.int8], errors: Float, total: Float,
) -> None:  # fmt: skip
    for start in range(0, len(scale), _LANES):
        # Views whose indices begin at 0: others may be negative for all the compiler knows, and are not vectorised.
        stop = min(start + _LANES, len(scale))
        scales, lows, highs, totals = scale[start:stop], low[start:stop], high[start:stop], total[start:stop]
        for j in range(len(wanted) - 1, -1, -1):
            want, integer, pivot = wanted[j, start:stop], q[j, start:stop], pivots[j]
            real, error = aim[j, start:stop], errors[j, start:stop]
            for n in range(len(scales)):
                value = min(max(np.rint(want[n] / scales[n]), lows[n]), highs[n])
                missed = value * scales[n] - want[n]
                integer[n] = value
                error[n] = value * scales[n] - real[n]
                totals[n] += pivot * (missed * missed)
            for k in range(j):
                _add(wanted[k, start:stop], -spread[j, k], error)


@_compiled
def _descend(
    slope: Float, h: Float, scale: Float, low: Float, high: Float, q: Float,
    moved: NDArray[np.bool_], limit: Float, u: Float, factors: Float,
) -> None:  # fmt: skip
    columns, uses = len(slope), factors.shape[1]
    lows, highs, step = np.empty(_LANES, slope.dtype), np.empty(_LANES, slope.dtype), np.empty(_LANES, slope.dtype)
    for start in range(0, len(scale), _LANES):
        stop = min(start + _LANES, len(scale))
        scales, lowest, highest, changed = scale[start:stop], low[start:stop], high[start:stop], moved[start:stop]
        for j in range(columns):
            downhill, integer, steep = slope[j, start:stop], q[j, start:stop], h[j, j]
            for n in range(len(scales)):
                lows[n], highs[n] = lowest[n], highest[n]
            for use in range(uses):
                if factors[j, use, 1] != 0:
                    _bound(lows, highs, integer, limit[0], u[int(factors[j, use, 0]), start:stop], factors[j, use, 1])
            for n in range(len(scales)):
                best = min(max(np.rint(integer[n] - downhill[n] / (steep * scales[n])), lows[n]), highs[n])
                step[n] = best - integer[n]
                integer[n] = best
                changed[n] |= step[n] != 0
            for use in range(uses):
                _add(u[int(factors[j, use, 0]), start:stop], factors[j, use, 1], step)
            for n in range(len(scales)):
                step[n] *= scales[n]
            for k in range(j + 1, columns):
                _add(slope[k, start:stop], h[k, j], step)


@_compiled
def _add(to: Float, factor: float, x: Float) -> None:
    for n in range(len(to)):
        to[n] += factor * x[n]


@_compiled
def _bound(low: Float, high: Float, q: Float, limit: float, form: Float, factor: float) -> None:
    """Bring the ends of what a column's integers may be closer, so that a form they enter does not leave the limit."""
    for n in range(len(form)):
        rest = form[n] - factor * q[n]
        one, other = (-limit - rest) / factor, (limit - rest) / factor
        low[n] = max(low[n], np.ceil(min(one, other)))
        high[n] = min(high[n], np.floor(max(one, other)))

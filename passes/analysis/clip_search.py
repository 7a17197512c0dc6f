"""Clipping ranges from a histogram: the expected error of a grid in closed form, and the searches over it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from passes.analysis.histogram import Histogram
from qcompile.ir import bits_of
from qcompile.semantics.grids import activation_grid

Float = NDArray[np.float64]

_COARSE = np.arange(10, 0, -1) / 10
_FINE = np.arange(8, -9, -2) / 100
_ROUNDS = 2
"""Rounds of the alternating search over the two ends; a third changes the error by less than 0.1 %."""


class ClipError:
    """Expected squared error of clipping and rounding a histogram's elements, uniform inside a bin."""

    def __init__(self, hist: Histogram) -> None:
        self.edges, counts = hist.occupied()
        self.density = counts / np.diff(self.edges) / max(hist.seen, 1)

    def __call__(self, lo: float, hi: float, bits: int) -> float:
        """Mean squared error per element on the grid of `bits` bits over [lo, hi], real units squared."""
        if not len(self.density):
            return 0.0
        grid = activation_grid(lo, hi, bits)
        low, high = -grid.zero * grid.scale, ((1 << bits_of(grid.dtype)) - 1 - grid.zero) * grid.scale
        return float(np.dot(np.diff(_integral(self.edges, grid.scale, low, high)), self.density))


def _integral(x: Float, step: float, low: float, high: float) -> Float:
    """∫₀ˣ (t − Q(t))² dt for rounding to multiples of `step` inside [low, high] and clipping outside.

    A full cell of the grid contributes step³/12, the distance r·step from the nearest point r³·step³/3, and
    what lies beyond an end the third of its cube.
    """
    inside = np.clip(x, low, high)
    cell = np.rint(inside / step)
    rest = inside / step - cell
    beyond = x - inside
    return np.asarray(step**3 * (cell / 12 + rest**3 / 3) + beyond**3 / 3)


def least_squares_clip(error: ClipError, lo: float, hi: float, bits: int) -> tuple[float, float]:
    """The range inside [lo, hi] with the smallest expected error: each end in turn, coarse then fine.

    Ends at 0 stay there, so one-sided ranges stay one-sided (lo ≤ 0 ≤ hi).
    """
    best = (1.0, 1.0)
    least = error(lo, hi, bits)
    both = lo < 0 < hi
    for _ in range(_ROUNDS if both else 1):
        for end in (0, 1):
            if (lo, hi)[end] == 0:
                continue
            for fine in (False, True):
                factors = best[end] + _FINE if fine else _COARSE
                for factor in factors[(factors > 0) & (factors <= 1)]:
                    trial = (best[0], float(factor)) if end else (float(factor), best[1])
                    found = error(lo * trial[0], hi * trial[1], bits)
                    if found < least:
                        best, least = trial, found
    return lo * best[0], hi * best[1]

"""A histogram of fixed size that re-bins itself as the data widens: no sample is kept."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from qcompile.exec.tensors import Tensor, count_zeros, extremes, histogram

BINS = 4096
"""At least half of them are in use after widening, so that a step of an 8-bit grid spans 8 bins or more."""

_TINIEST = -120
"""Exponent of the finest bin: float32 arithmetic on the edges stays normal."""

_FINEST = 1 << 22
"""Largest index of a bin, for the same reason (data far from zero with little spread)."""


def _fits(lo: float, hi: float, exponent: int) -> bool:
    width = math.ldexp(1.0, exponent)
    if max(abs(lo), abs(hi)) >= width * _FINEST:
        return False
    return math.floor(hi / width) - math.floor(lo / width) < BINS


@dataclass
class Histogram:
    """Counts over bins [i·2^k, (i+1)·2^k), i = start … start + BINS − 1.

    k is the smallest exponent whose bins span all data seen so far, so the result depends neither on the
    order of the batches nor on how samples are split into them.  Exact zeros (half of what a ReLU yields) are
    counted apart: they are represented without error on every grid.

    Attributes:
        lo, hi: smallest and largest value seen.
        zeros: exact zeros; not part of `counts`.
        seen: elements in all.
    """

    lo: float = math.inf
    hi: float = -math.inf
    zeros: int = 0
    seen: int = 0
    exponent: int = _TINIEST
    start: int = 0
    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, np.int64))

    def add(self, x: Tensor) -> bool:
        """Count a tensor's elements; False (and nothing counted) where it holds NaN or infinity."""
        lo, hi = extremes(x)
        if not (math.isfinite(lo) and math.isfinite(hi)):
            return False
        self.lo, self.hi = min(self.lo, lo), max(self.hi, hi)
        self._widen()
        width = math.ldexp(1.0, self.exponent)
        fresh = histogram(x, width, self.start, BINS)
        zeros = count_zeros(x) if lo <= 0 <= hi else 0
        if zeros:
            fresh[-self.start] -= zeros
        self.counts += fresh
        self.zeros += zeros
        self.seen += x.numel()
        return True

    def _widen(self) -> None:
        """Merge neighbouring bins until [lo, hi] fits, then shift them so that it is covered."""
        while not _fits(self.lo, self.hi, self.exponent):
            begin = self.start - (self.start & 1)  # pairs start at even indices
            padded = np.zeros(2 * BINS, np.int64)
            padded[self.start - begin : self.start - begin + BINS] = self.counts
            self.counts = padded.reshape(-1, 2).sum(axis=1)
            self.exponent, self.start = self.exponent + 1, begin // 2
        first = math.floor(self.lo / math.ldexp(1.0, self.exponent))
        if first != self.start:
            # Everything seen lies in [lo, hi], so the bins that fall off at either end are empty.
            shifted = np.zeros(BINS, np.int64)
            used = np.flatnonzero(self.counts)
            shifted[used + self.start - first] = self.counts[used]
            self.counts, self.start = shifted, first

    def occupied(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(edges, counts) of the span of bins between the first and the last that is not empty, float64."""
        used = np.flatnonzero(self.counts)
        if not len(used):
            return np.zeros(1), np.zeros(0)
        first, last = int(used[0]), int(used[-1]) + 1
        edges = (self.start + np.arange(first, last + 1)) * math.ldexp(1.0, self.exponent)
        return edges.astype(np.float64), self.counts[first:last].astype(np.float64)

    def percentile(self, share: float) -> float:
        """The value below which `share` percent of the elements lie, linear inside a bin."""
        mass = self.counts.astype(np.float64)
        if self.zeros:
            mass[-self.start] += self.zeros
        edges = (self.start + np.arange(BINS + 1)) * math.ldexp(1.0, self.exponent)
        below = np.concatenate([[0.0], np.cumsum(mass)])
        value = float(np.interp(share / 100 * below[-1], below, edges))
        return min(max(value, self.lo), self.hi)

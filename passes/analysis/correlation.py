"""How two series of numbers agree."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]


def ranks(values: Sequence[float]) -> Float:
    """Ranks from 0, equal values sharing the mean of theirs."""
    x = np.asarray(values, np.float64)
    _, inverse, counts = np.unique(x, return_inverse=True, return_counts=True)
    last = np.cumsum(counts) - 1
    return np.asarray((last - (counts - 1) / 2)[inverse])


def pearson(a: Sequence[float] | Float, b: Sequence[float] | Float) -> float:
    """Linear correlation; 0 where a series does not vary."""
    x, y = (np.asarray(v, np.float64) - np.mean(v) for v in (a, b))
    size = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / size if size > 0 else 0.0


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    """Rank correlation (Spearman's ρ, ties at their mean rank)."""
    return pearson(ranks(a), ranks(b))

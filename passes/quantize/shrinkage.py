"""How far second moments can be trusted: shrinkage chosen by cross-validation, layer by layer.

A classifier behind a global pooling sees one column per sample: 160 images say nothing about most directions of 1,280
inputs, and rounding that hides its error there fails on the next image.  Samples lie in two halves; what is fitted
to one half is judged by the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from passes.quantize.gptq import Float, follow, gptq, nearest, quadratic_error, shrunk
from qcompile.exec.linear import product
from qcompile.exec.torch_moments import SINGLE_FROM

FOLLOW_DAMPINGS = (0.05, 0.2, 1.0, np.inf)
"""Of `follow`, as shares of the mean of diag H; infinite: the layer does not make up for anything."""

SHARES = (0.0, 0.1, 0.3, 1.0)
"""Of the off-diagonal moments taken away before GPTQ; 1 is rounding to nearest, with scales chosen by error."""


JUDGED = 128
"""Rows of a layer that are looked at, at most: what is chosen is one number for the layer."""


def judged(rows: int) -> NDArray[np.int64]:
    """The rows that choices are made by, evenly over all."""
    few = min(rows, JUDGED)
    return np.arange(few) * rows // few


def least(risk: Callable[[float], float], candidates: Sequence[float]) -> float:
    """The candidate of least risk, looked for from the last one, which trusts least and costs least, downhill."""
    best, lowest = candidates[-1], risk(candidates[-1])
    for candidate in reversed(candidates[:-1]):
        found = risk(candidate)
        if found >= lowest:
            break
        best, lowest = candidate, found
    return best


def turns(columns: int) -> tuple[tuple[int, int], ...]:
    """(half that is fitted to, half that judges); so many columns are costly, and one turn says enough of them."""
    return ((0, 1), (1, 0)) if columns < SINGLE_FROM else ((0, 1),)


def choose_follow(w: Float, xx: Float, tx: Float) -> float:
    """The damping of `follow` whose weights, fitted to one half, are closest to the float outputs on the other.

    E|v x − w x − t|² = (v−w) E[xxᵀ] (v−w)ᵀ − 2 E[t xᵀ] (v−w)ᵀ + what does not depend on v.

    Args:
        w: (G, R, K).
        xx: means over each half of x xᵀ, (2, G, K, K).
        tx: the same of t xᵀ, (2, G, R, K).
    """

    def risk(damping: float) -> float:
        total = 0.0
        for own, other in turns(w.shape[2]) if damping != np.inf else ():
            change = follow(w, xx[own], tx[own], damping) - w
            total += float(((product(change, xx[other]) - 2 * tx[other]) * change).sum())
        return total

    return least(risk, FOLLOW_DAMPINGS)


def choose_share(w: Float, xx: Float, scale: Float, top: int) -> float:
    """The shrinkage with which integers found on one half have the smallest error on the other.

    Args:
        w: (G, R, K), the real weights to be rounded.
        xx: means over each half, (2, G, K, K).
        scale: (G, R).
    """

    def risk(share: float) -> float:
        total = 0.0
        for own, other in turns(w.shape[2]):
            q = nearest(w, scale[..., None], top) if share == 1.0 else gptq(w, shrunk(xx[own], share), scale, top)
            total += float(quadratic_error(q, scale, w, xx[other]).sum())
        return total

    return least(risk, SHARES)

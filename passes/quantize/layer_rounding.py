"""One layer's integers by the method asked for, from the moments of what it reads."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from passes.quantize.gptq import MANY, Float, follow, round_layer, shrunk, working
from passes.quantize.learned import adaquant, adaround
from passes.quantize.shrinkage import choose_follow, choose_share, judged
from passes.quantize.winograd_cap import cap
from qcompile.exec.torch_moments import Moments
from qcompile.semantics.grids import quantize_weights, weight_range, weight_scales

EXACT_FROM = 8
"""Weight bits from which rounding to nearest is as good as anything; only biases are corrected there."""

FINE_FROM, USUAL_SHARE = 6, 0.3
"""Weight bits from which layers of many columns are rounded without cross-validation, which costs them more than the
rounding, and the shrinkage they get: what nearly all such layers of a ResNet-50 choose."""

SHRINK: NDArray[np.float64] = np.arange(1.0, 0.39, -0.06)
"""Candidate scales as shares of the one that clips nothing."""


def candidate_shares(bits: int, columns: int) -> NDArray[np.float64]:
    """Those of `SHRINK` that can be best: the finer the grid, the less clipping pays.

    A fine grid forgives the next but one, and many columns are costly.
    """
    found = SHRINK[0.38 + 0.12 * max(0, bits - 4) < SHRINK]
    return found[::2] if bits > 4 and columns >= MANY else found


@dataclass(frozen=True, slots=True, eq=False)
class RoundedLayer:
    """Attributes:
    q: (G, R, K) integers as float64.
    scale: (G, R).
    aim: the real weights they stand for, (G, R, K).
    winograd: whether the integers were capped for the Winograd kernel.
    refused: whether capping would have cost too much.
    """

    q: Float
    scale: Float
    aim: Float
    winograd: bool = False
    refused: bool = False


def round_moments(
    w: Float, shape: tuple[int, ...], moments: Moments, bits: int, method: str, sweeps: int, limit: int
) -> RoundedLayer:
    """Round a layer.

    Args:
        w: (G, R, K), real.
        shape: of the layer's weights.
        moments: of its columns, in two folds.
        method: "gptq", "adaround" or "adaquant".
        sweeps: of coordinate descent behind GPTQ.
        limit: of the integers' Winograd transform; 0 for none.
    """
    top = weight_range(bits)[1]
    if bits >= EXACT_FROM:
        exact = weight_scales(w.reshape(shape), bits)
        near = quantize_weights(w.reshape(shape), bits, exact).astype(np.float64)
        return RoundedLayer(near.reshape(w.shape), exact.reshape(w.shape[:2]), w)
    w, counts = working(w), np.asarray(moments.counts)[:, None, None, None]
    xx = moments.fold_xx.sum(axis=0) / moments.count
    damping, share = np.inf, 1.0
    aim = w
    if min(moments.counts) and bits >= FINE_FROM and w.shape[2] >= MANY:
        share = USUAL_SHARE
    elif min(moments.counts):
        rows = judged(w.shape[1])
        halves, lacking = (x / counts.astype(w.dtype) for x in (moments.fold_xx, moments.fold_tx[:, :, rows]))
        damping = choose_follow(w[:, rows], halves, lacking)
        aim = follow(w, xx, moments.fold_tx.sum(axis=0) / moments.count, damping)
        share = choose_share(aim[:, rows], halves, _scales(aim[:, rows], bits), top)
    h = shrunk(xx, share)
    if method == "gptq":
        q, scale = round_layer(aim, h, bits, candidate_shares(bits, w.shape[2]), sweeps)
    else:
        # The clipping search of the scale is GPTQ's, which is cheap; then the integers are learned.
        _, searched = round_layer(aim, h, bits, candidate_shares(bits, w.shape[2]), 0)
        if method == "adaround":
            q, scale = adaround(aim, h, searched, top), searched
        else:
            q, scale = adaquant(aim, h, searched, top)
    if limit and shape[2:] == (3, 3) and moments.groups == 1:
        found = cap(q[0], scale[0], aim[0], h[0], top, limit)
        changed = found is not None and not np.array_equal(found, q[0])
        return RoundedLayer(q if found is None else found[None], scale, aim, changed, found is None)
    return RoundedLayer(q, scale, aim)


def _scales(w: Float, bits: int) -> Float:
    """The scale of each channel of (G, R, K) with the least squared error, (G, R)."""
    flat = w.reshape(-1, w.shape[2])
    return np.asarray(weight_scales(flat, bits).reshape(w.shape[:2]).astype(w.dtype))

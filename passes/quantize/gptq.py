"""Rounding that knows what the weights are multiplied with: GPTQ, its scales, and a descent behind it.

Everything minimises (q·s − w) H (q·s − w)ᵀ for each output channel: q integers with |q| ≤ top, s the channel's
scale, H the second moments of the layer's columns.  Arrays carry a leading dimension G of convolution groups, each
with R output channels and K weights per channel; a dense layer has G = 1, a depthwise one R = 1.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]

DAMPING = 0.01
"""Added to the diagonal of H, as a share of its mean (Frantar et al. 2022)."""

_BLOCK = 64
"""Columns rounded between two updates of all columns behind them."""


def damped(h: Float, share: float = DAMPING) -> Float:
    """H + share · mean(diag H) · 1, positive definite; (G, K, K)."""
    size = h.shape[-1]
    mean = np.trace(h, axis1=-2, axis2=-1) / size
    return np.asarray(h + np.maximum(share * mean, 1e-12)[:, None, None] * np.eye(size))


def shrunk(h: Float, share: float) -> Float:
    """H with the off-diagonal elements shrunk by `share`, damped; at 1 the columns count as independent."""
    own = np.eye(h.shape[-1], dtype=bool)
    return damped(np.where(own, h, (1 - share) * h))


def follow(w: Float, xx: Float, dx: Float, damping: float) -> Float:
    """The real weights that give, from rounded inputs x, what `w` gives from float inputs x + d.

    They minimise E|v x − w (x + d)|² + λ|v − w|²: v = w + w E[d xᵀ] (E[x xᵀ] + λ)⁻¹, λ the share `damping` of the
    mean of diag E[x xᵀ]; an infinite one gives w.  Rounding them instead of `w` takes back errors of earlier layers as
    far as this layer can see them (as the asymmetric calibration of GPTAQ, Li et al. 2025, does column by column).

    Args:
        w: (G, R, K).
        xx, dx: second moments of x, and of d and x, (G, K, K).
    """
    if damping == np.inf:
        return w
    return np.asarray(w + np.linalg.solve(damped(xx, damping), (w @ dx).swapaxes(1, 2)).swapaxes(1, 2))


def quadratic_error(q: Float, scale: Float, w: Float, h: Float) -> Float:
    """(q·s − w) H (q·s − w)ᵀ of each output channel, (G, R)."""
    e = q * scale[..., None] - w
    return np.asarray(((e @ h) * e).sum(axis=-1))


def gptq(w: Float, h: Float, scale: Float, top: int | Float) -> Float:
    """Round column by column, each time moving the rest to where it compensates best.

    Source: Frantar et al. 2022 (OPTQ), with the columns in the order of falling diag H.

    Args:
        w: real weights (G, R, K).
        h: positive definite (G, K, K).
        scale: (G, R).
        top: largest integer; one for all, or (G, R).

    Returns:
        Integers as float64, (G, R, K).
    """
    order = np.argsort(-np.diagonal(h, axis1=1, axis2=2), axis=1, kind="stable")
    back = np.argsort(order, axis=1, kind="stable")
    h = np.take_along_axis(np.take_along_axis(h, order[:, :, None], 1), order[:, None, :], 2)
    # The upper Cholesky factor of H⁻¹: row j tells how an error in column j spreads over those behind it.
    upper = np.linalg.cholesky(np.linalg.inv(h)).swapaxes(1, 2)
    w = np.take_along_axis(w, order[:, None, :], 2)
    q = np.empty_like(w)
    columns = w.shape[2]
    for start in range(0, columns, _BLOCK):
        stop = min(start + _BLOCK, columns)
        errors = np.empty((*w.shape[:2], stop - start))
        for j in range(start, stop):
            q[..., j] = np.clip(np.rint(w[..., j] / scale), -top, top)
            error = (w[..., j] - q[..., j] * scale) / upper[:, j, j, None]
            w[..., j:stop] -= error[..., None] * upper[:, None, j, j:stop]
            errors[..., j - start] = error
        w[..., stop:] -= errors @ upper[:, start:stop, stop:]
    return np.take_along_axis(q, back[:, None, :], 2)


def descend(q: Float, scale: Float, w: Float, h: Float, top: int | Float, sweeps: int) -> Float:
    """Coordinate descent from q: each integer in turn takes its best value, all others fixed; never worse."""
    q = q.copy()
    diagonal = np.diagonal(h, axis1=1, axis2=2)
    columns = q.shape[2]
    for _ in range(sweeps):
        before = q.copy()
        for start in range(0, columns, _BLOCK):
            stop = min(start + _BLOCK, columns)
            slope = (q * scale[..., None] - w) @ h[..., start:stop]
            for j in range(start, stop):
                best = q[..., j] - slope[..., j - start] / (diagonal[:, None, j] * scale)
                best = np.clip(np.rint(best), -top, top)
                step = (best - q[..., j]) * scale
                slope += step[..., None] * h[:, None, j, start:stop]
                q[..., j] = best
        if np.array_equal(q, before):
            break
    return q


def best_scale(q: Float, scale: Float, w: Float, h: Float) -> Float:
    """The scale with the smallest error for given integers, (G, R): a quotient of two quadratic forms."""
    qh = q @ h
    below = (qh * q).sum(axis=-1)
    found = (qh * w).sum(axis=-1) / np.where(below > 0, below, 1.0)
    return np.where((below > 0) & (found > 0), found, scale)


def round_layer(w: Float, h: Float, bits: int, shrink: Float, sweeps: int) -> tuple[Float, Float]:
    """Integers and scales of a layer: GPTQ for every candidate scale of every channel, the best of each refined.

    Args:
        w: (G, R, K).
        h: positive definite (G, K, K).
        shrink: candidate scales as shares of max|w| / top.
        sweeps: of the descent.

    Returns:
        q (G, R, K) as float64, scale (G, R).
    """
    top = (1 << (bits - 1)) - 1
    groups, rows, columns = w.shape
    largest = np.abs(w).max(axis=2)
    base = np.where(largest > 0, largest, top) / top
    scales = (base[:, None] * shrink[None, :, None]).reshape(groups, -1)
    stacked = np.broadcast_to(w[:, None], (groups, len(shrink), rows, columns)).reshape(groups, -1, columns)
    q = gptq(stacked, h, scales, top)
    error = quadratic_error(q, scales, stacked, h).reshape(groups, len(shrink), rows)
    best = error.argmin(axis=1)
    q = np.take_along_axis(q.reshape(groups, len(shrink), rows, columns), best[:, None, :, None], 1)[:, 0]
    scale = np.take_along_axis(scales.reshape(groups, len(shrink), rows), best[:, None], 1)[:, 0]
    for _ in range(2 if sweeps else 0):
        q = descend(q, scale, w, h, top, sweeps)
        scale = best_scale(q, scale, w, h)
    return q, scale

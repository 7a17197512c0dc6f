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

_BLOCK, _INNER = 128, 16
"""Columns rounded between two updates of all columns behind them, and of those in the same block."""

_ROWS = 1024
"""Rows looked at together: what they need at a time stays in the caches, and memory does not grow with their number."""


def damped(h: Float, share: float = DAMPING) -> Float:
    """H + share · mean(diag H) · 1, positive definite; (G, K, K)."""
    size = h.shape[-1]
    mean = np.trace(h, axis1=-2, axis2=-1) / size
    return np.asarray(h + np.maximum(share * mean, 1e-12)[:, None, None] * np.eye(size))


def shrunk(h: Float, share: float) -> Float:
    """H with the off-diagonal elements shrunk by `share`, damped; at 1 the columns count as independent."""
    own = np.eye(h.shape[-1], dtype=bool)
    return damped(np.where(own, h, (1 - share) * h))


def follow(w: Float, xx: Float, tx: Float, damping: float) -> Float:
    """The real weights that give, from rounded inputs x, what the float network has there: w x + t.

    They minimise E|v x − w x − t|² + λ|v − w|²: v = w + E[t xᵀ] (E[x xᵀ] + λ)⁻¹, λ the share `damping` of the mean of
    diag E[x xᵀ]; an infinite one gives w.  With d what the float network's inputs have beyond x, t holds w d: rounding
    v instead of `w` takes back errors of earlier layers as far as this layer can see them (as the asymmetric
    calibration of GPTAQ, Li et al. 2025, does column by column).  Where the output is added to another value, t also
    holds what that one lacks, so that their sum comes close and not each of them (the output of a residual block is
    what BRECQ, Li et al. 2021, reconstructs).

    Args:
        w: (G, R, K).
        xx: second moments of x, (G, K, K).
        tx: E[t xᵀ], (G, R, K).
    """
    if damping == np.inf:
        return w
    return np.asarray(w + np.linalg.solve(damped(xx, damping), tx.swapaxes(1, 2)).swapaxes(1, 2))


def quadratic_error(q: Float, scale: Float, w: Float, h: Float) -> Float:
    """(q·s − w) H (q·s − w)ᵀ of each output channel, (G, R)."""
    e = q * scale[..., None] - w
    return np.asarray(((e @ h) * e).sum(axis=-1))


def inverse_factor(h: Float) -> Float:
    """U upper triangular with H⁻¹ = Uᵀ U, (G, K, K): row j tells how an error in column j spreads over those behind it.

    The Cholesky factor of H with rows and columns reversed is the inverse of U reversed, so H itself is never inverted.
    """
    lower: Float = np.linalg.cholesky(h[:, ::-1, ::-1]).astype(np.float64, copy=False)
    return _inverted(lower[:, ::-1, ::-1])


def _inverted(upper: Float) -> Float:
    """The inverse of upper triangular matrices, by halves: a third of the work of a general one, all of it products."""
    size = upper.shape[-1]
    if size <= _BLOCK:
        return np.triu(np.linalg.inv(upper))
    half = size // 2
    found = np.zeros_like(upper)
    found[:, :half, :half] = _inverted(upper[:, :half, :half])
    found[:, half:, half:] = _inverted(upper[:, half:, half:])
    found[:, :half, half:] = -(found[:, :half, :half] @ upper[:, :half, half:]) @ found[:, half:, half:]
    return found


def gptq(w: Float, h: Float, scale: Float, top: int | Float) -> Float:
    """The integers of `gptq_errors`."""
    return gptq_errors(w, h, scale, top)[0]


def gptq_errors(w: Float, h: Float, scale: Float, top: int | Float) -> tuple[Float, Float]:
    """Round column by column, each time moving the rest to where it compensates best.

    Source: Frantar et al. 2022 (OPTQ), with the columns in the order of falling diag H.

    Args:
        w: real weights (G, R, K).
        h: positive definite (G, K, K).
        scale: (G, R).
        top: largest integer; one for all, or (G, R).

    Returns:
        Integers as float64, (G, R, K), and `quadratic_error` of each row, (G, R): with e the errors of the columns when
        they were rounded, q·s − w = −e U, so it is the sum of their squares.
    """
    order = np.argsort(-np.diagonal(h, axis1=1, axis2=2), axis=1, kind="stable")
    back = np.argsort(order, axis=1, kind="stable")
    upper = inverse_factor(_permuted(_permuted(h, order).swapaxes(1, 2), order))
    tops = np.broadcast_to(np.asarray(top, np.float64), scale.shape)
    q, error = np.empty(w.shape), np.empty(w.shape[:2])
    for start in range(0, w.shape[1], _ROWS):
        rows = slice(start, start + _ROWS)
        columns = _permuted(w[:, rows], order).swapaxes(1, 2)
        found, error[:, rows] = _rounded(np.array(columns, order="C"), upper, scale[:, rows], tops[:, rows])
        q[:, rows] = _permuted(found.swapaxes(1, 2), back)
    return q, error


def _permuted(x: Float, order: NDArray[np.int64]) -> Float:
    """The columns (last axis) of each group in an order of its own, (G, K)."""
    return np.stack([group.take(own, axis=1) for group, own in zip(x, order, strict=True)])


def _rounded(w: Float, upper: Float, scale: Float, top: Float) -> tuple[Float, Float]:
    """Integers of the columns (G, K, R) in this order, and the errors of the rows; `w` is overwritten."""
    groups, columns, rows = w.shape
    q, total = np.empty_like(w), np.zeros((groups, rows))
    for start in range(0, columns, _BLOCK):
        stop = min(start + _BLOCK, columns)
        errors = np.empty((groups, stop - start, rows))
        for first in range(start, stop, _INNER):
            last = min(first + _INNER, stop)
            for j in range(first, last):
                q[:, j] = np.clip(np.rint(w[:, j] / scale), -top, top)
                error = (w[:, j] - q[:, j] * scale) / upper[:, j, j, None]
                w[:, j + 1 : last] -= upper[:, j, j + 1 : last, None] * error[:, None]
                errors[:, j - start] = error
            spread = upper[:, first:last, last:stop].swapaxes(1, 2)
            w[:, last:stop] -= spread @ errors[:, first - start : last - start]
        total += np.square(errors).sum(axis=1)
        w[:, stop:] -= upper[:, start:stop, stop:].swapaxes(1, 2) @ errors
    return q, total


def descend(q: Float, scale: Float, w: Float, h: Float, top: int | Float, sweeps: int) -> Float:
    """Coordinate descent from q: each integer in turn takes its best value, all others fixed; never worse.

    Rows that a sweep leaves as they are, in all groups, are finished.
    """
    found = np.array(q)
    tops = np.broadcast_to(np.asarray(top, np.float64), scale.shape)
    for start in range(0, q.shape[1], _ROWS):
        rows = slice(start, start + _ROWS)
        found[:, rows] = _descended(q[:, rows], scale[:, rows], w[:, rows], h, tops[:, rows], sweeps)
    return found


def _descended(q: Float, scale: Float, w: Float, h: Float, top: Float, sweeps: int) -> Float:
    q, target = np.array(q.swapaxes(1, 2), order="C"), np.array(w.swapaxes(1, 2), order="C")
    steep = np.diagonal(h, axis1=1, axis2=2)[..., None]
    live, columns = np.arange(q.shape[2]), q.shape[1]
    for _ in range(sweeps):
        moved = np.zeros(len(live), bool)
        own, limit, integers, aim = scale[:, live], top[:, live], q[..., live], target[..., live]
        left = integers * own[:, None] - aim
        for start in range(0, columns, _BLOCK):
            stop = min(start + _BLOCK, columns)
            slope = h[:, start:stop] @ left
            for first in range(start, stop, _INNER):
                last = min(first + _INNER, stop)
                changes = np.empty((len(q), last - first, len(live)))
                for j in range(first, last):
                    best = np.clip(np.rint(integers[:, j] - slope[:, j - start] / (steep[:, j] * own)), -limit, limit)
                    changes[:, j - first] = (best - integers[:, j]) * own
                    slope[:, j + 1 - start : last - start] += h[:, j + 1 : last, j, None] * changes[:, None, j - first]
                    integers[:, j] = best
                slope[:, last - start :] += h[:, last:stop, first:last] @ changes
                moved |= changes.any(axis=(0, 1))
            left[:, start:stop] = integers[:, start:stop] * own[:, None] - aim[:, start:stop]
        q[..., live] = integers
        live = live[moved]
        if not len(live):
            break
    return np.asarray(q.swapaxes(1, 2))


def best_scale(q: Float, scale: Float, w: Float, h: Float) -> Float:
    """The scale with the smallest error for given integers, (G, R): a quotient of two quadratic forms."""
    qh = q @ h
    below = (qh * q).sum(axis=-1)
    found = (qh * w).sum(axis=-1) / np.where(below > 0, below, 1.0)
    return np.where((below > 0) & (found > 0), found, scale)


def round_layer(w: Float, h: Float, bits: int, shrink: Float, sweeps: int) -> tuple[Float, Float]:
    """Integers and scales of a layer: GPTQ for every candidate scale of every channel, the best of each refined.

    No channel is worse than rounded to nearest at the scale of its largest weight, as `quadratic_error` has it.

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
    q, error = gptq_errors(stacked, h, scales, top)
    best = error.reshape(groups, len(shrink), rows).argmin(axis=1)
    q = np.take_along_axis(q.reshape(groups, len(shrink), rows, columns), best[:, None, :, None], 1)[:, 0]
    scale = np.take_along_axis(scales.reshape(groups, len(shrink), rows), best[:, None], 1)[:, 0]
    for _ in range(2 if sweeps else 0):
        q = descend(q, scale, w, h, top, sweeps)
        scale = best_scale(q, scale, w, h)
    # Column by column is greedy, and now and then worse than rounding each weight alone.
    nearest = np.clip(np.rint(w / base[..., None]), -top, top)
    kept = quadratic_error(nearest, base, w, h) < quadratic_error(q, scale, w, h)
    return np.where(kept[..., None], nearest, q), np.where(kept, base, scale)

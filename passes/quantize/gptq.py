"""Rounding that knows what the weights are multiplied with: GPTQ, its scales, and a descent behind it.

Everything minimises (q·s − w) H (q·s − w)ᵀ for each output channel: q integers from −top − 1 to top, s the channel's
scale, H the second moments of the layer's columns.  Arrays carry a leading dimension G of convolution groups, each
with R output channels and K weights per channel; a dense layer has G = 1, a depthwise one R = 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompile.exec.column_loops import descend_block, round_block
from qcompile.exec.linear import cholesky, product, solve_positive
from qcompile.exec.row_parts import over_rows
from qcompile.exec.torch_moments import SINGLE_FROM
from qcompile.semantics.grids import weight_range

Float = NDArray[np.floating[Any]]

DAMPING = 0.01
"""Added to the diagonal of H, as a share of its mean (Frantar et al. 2022)."""

MANY = 2048
"""Columns from which less is tried: the cost of a layer grows with their cube, and coarser choices cost little."""

_ROUNDS, _SINGLE_SWEEPS = 2, 2
"""Times that integers and scales take turns.  Layers in single precision have one, of so many sweeps at most: GPTQ has
most of what there is to gain, the first sweeps 2 % of the error, all others together less than 1 %."""

_BLOCK = 64
"""Columns rounded between two updates of all columns behind them."""

_ROWS = 2048
"""Rows looked at together, so that memory does not grow with their number."""


def working(x: Float) -> Float:
    """An array (…, K) in the precision that rounding of K columns runs in."""
    return x.astype(np.float32 if x.shape[-1] >= SINGLE_FROM else np.float64, copy=False)


def nearest(w: Float, scale: Float, top: Any) -> Float:
    """w / scale to the nearest integer from −top − 1 to top; all broadcastable."""
    return np.asarray(np.clip(np.rint(w / scale), -top - 1, top))


def unclipped_scale(w: Float, top: Any) -> Float:
    """The smallest scale at which no weight of a channel is clipped: (…, K) → (…); 1 where all are 0."""
    found = np.maximum(w.max(axis=-1) / top, w.min(axis=-1) / (-top - 1))
    return np.asarray(np.where(found > 0, found, 1))


def damped(h: Float, share: float = DAMPING) -> Float:
    """H + share · mean(diag H) · 1, positive definite; (G, K, K)."""
    return _with_diagonal(h.copy(), np.diagonal(h, axis1=1, axis2=2), share)


def shrunk(h: Float, share: float) -> Float:
    """H with the off-diagonal elements shrunk by `share`, damped; at 1 the columns count as independent."""
    return _with_diagonal(np.multiply(h, h.dtype.type(1 - share)), np.diagonal(h, axis1=1, axis2=2), DAMPING)


def _with_diagonal(h: Float, diagonal: Float, share: float) -> Float:
    own = np.arange(h.shape[-1])
    h[:, own, own] = diagonal + np.maximum(share * diagonal.mean(axis=1, keepdims=True), 1e-12)
    return h


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
    return np.asarray(w + solve_positive(damped(xx, damping), tx.swapaxes(1, 2)).swapaxes(1, 2))


def quadratic_error(q: Float, scale: Float, w: Float, h: Float) -> Float:
    """(q·s − w) H (q·s − w)ᵀ of each output channel, (G, R)."""
    e = q * scale[..., None] - w
    return np.asarray((product(e, h) * e).sum(axis=-1))


@dataclass(frozen=True, slots=True, eq=False)
class Factor:
    """H as H = L Lᵀ, its columns in the order of rising diag H; they are rounded from the last to the first.

    With e the errors q·s − w in that order, e H eᵀ is the sum over columns j of (L_jj e_j + Σ_{i>j} e_i L_ij)²: each
    column can make up for all that are rounded before it.  That is what GPTQ's inverse Cholesky factor says as well (it
    is the inverse of this one, Chen et al. 2025), but H need not be inverted for it.

    Attributes:
        order: (G, K).
        lower: L, (G, K, K).
    """

    order: NDArray[np.int64]
    lower: Float

    def columns(self, w: Float) -> Float:
        """Rows (G, R, K) as columns in this order, (G, K, R)."""
        return np.stack([rows.T[own] for rows, own in zip(w, self.order, strict=True)])

    def rows(self, columns: NDArray[Any]) -> Float:
        """Columns in this order, (G, K, R), as rows (G, R, K)."""
        found = np.empty((len(columns), columns.shape[2], columns.shape[1]), self.lower.dtype)
        for rows, own, order in zip(found, columns, self.order, strict=True):
            rows[:, order] = own.T
        return found


def factorised(h: Float) -> Factor:
    """H, positive definite (G, K, K), ready for rounding."""
    order = np.argsort(-np.diagonal(h, axis1=1, axis2=2), axis=1, kind="stable")[:, ::-1]
    return Factor(order, cholesky(np.stack([x[own].take(own, axis=1) for x, own in zip(h, order, strict=True)])))


def gptq(w: Float, h: Float, scale: Float, top: int | Float) -> Float:
    """Round column by column, each time moving the rest to where it compensates best.

    Source: Frantar et al. 2022 (OPTQ), with the columns in the order of falling diag H.

    Args:
        w: real weights (G, R, K).
        h: positive definite (G, K, K).
        scale: (G, R).
        top: largest integer; one for all, or (G, R).

    Returns:
        Integers as floats, (G, R, K).
    """
    factor = factorised(h)
    return factor.rows(round_columns(w, factor, scale, top)[0])


def round_columns(w: Float, factor: Factor, scale: Float, top: int | Float) -> tuple[NDArray[Any], Float]:
    """GPTQ for many scales of each channel: N = n·R roundings, number i of channel i mod R.

    Args:
        w: real weights (G, R, K).
        scale: (G, N).
        top: largest integer; one for all, or (G, N).

    Returns:
        Integers, int8, as columns in the factor's order, (G, K, N), and `quadratic_error` of each rounding, (G, N).
    """
    columns = factor.columns(w)
    scale = scale.astype(columns.dtype, copy=False)
    tops = np.broadcast_to(np.asarray(top, columns.dtype), scale.shape)
    q: NDArray[Any] = np.empty((*columns.shape[:2], scale.shape[1]), np.int8)
    error = np.zeros(scale.shape, columns.dtype)
    for group, (own, lower) in enumerate(zip(columns, factor.lower, strict=True)):

        def work(part: slice, group: int = group, own: Float = own, lower: Float = lower) -> None:
            aim = np.take(own, np.arange(part.start, part.stop) % w.shape[1], axis=1)
            found = np.empty(aim.shape, np.int8)
            _rounded(aim, lower, scale[group, part], tops[group, part], found, error[group, part])
            q[group, :, part] = found

        over_rows(scale.shape[1], _ROWS, work)
    return q, error


def _rounded(aim: Float, lower: Float, scale: Float, top: Float, q: NDArray[np.int8], total: Float) -> None:
    """Integers of one group's columns (K, N) in the factor's order, and the errors of the roundings, (N,), written."""
    errors, roots = np.empty_like(aim), np.diagonal(lower)
    for start in reversed(range(0, len(aim), _BLOCK)):
        block, done = slice(start, start + _BLOCK), slice(start + _BLOCK, None)
        # What each column should be, to make up for the ones rounded before it.
        wanted = aim[block] - (lower[done, block] / roots[block]).T @ errors[done]
        own = lower[block, block] / roots[block]
        pivots = np.square(roots[block])
        round_block(wanted, aim[block], own, pivots, scale, -top - 1, top, q[block], errors[block], total)


@dataclass(frozen=True, slots=True, eq=False)
class Forms:
    """Linear forms of a row's integers that have to stay within a limit; for layers of one group.

    Attributes:
        factors: of each column in the forms it enters: index of the form and factor, (K, uses, 2); 0 is no factor.
        values: of all forms at the integers to begin with, (forms, R).
        limit: of their magnitude.
    """

    factors: Float
    values: Float
    limit: int


def descend(
    q: Float, scale: Float, w: Float, h: Float, top: int | Float, sweeps: int, forms: Forms | None = None
) -> Float:
    """Coordinate descent from q: each integer in turn takes its best value, all others fixed; never worse.

    Rows that a sweep leaves as they are are finished.

    Args:
        q: (G, R, K), within the limits.
        scale: (G, R).
        w: (G, R, K).
        h: positive definite (G, K, K).
        top: largest integer; one for all, or (G, R).
        forms: further limits.
    """
    found = np.array(q, w.dtype)
    tops = np.broadcast_to(np.asarray(top, w.dtype), scale.shape)
    scale = scale.astype(w.dtype, copy=False)
    for group in range(len(q)):

        def work(rows: slice, group: int = group) -> None:
            part = found[group, rows], scale[group, rows], w[group, rows], h[group], tops[group, rows]
            found[group, rows] = _descended(*part, sweeps, forms, rows)

        over_rows(q.shape[1], _ROWS, work)
    return found


def _descended(
    q: Float, scale: Float, w: Float, h: Float, top: Float, sweeps: int, forms: Forms | None, rows: slice
) -> Float:
    """`descend` for rows of one group: q and w (R, K), scale and top (R,), h (K, K)."""
    q, target = np.ascontiguousarray(q.T), np.ascontiguousarray(w.T)
    factors = np.zeros((len(q), 0, 2), q.dtype) if forms is None else forms.factors.astype(q.dtype)
    values = np.zeros((0, q.shape[1]), q.dtype) if forms is None else forms.values[:, rows].astype(q.dtype)
    limit = np.array([0 if forms is None else forms.limit], q.dtype)
    live = np.arange(q.shape[1])
    for _ in range(sweeps):
        moved = np.zeros(len(live), bool)
        own, integers, aim, high = scale[live], q[:, live], target[:, live], top[live]
        left, inside = integers * own - aim, values[:, live]
        for start in range(0, len(q), _BLOCK):
            block = slice(start, start + _BLOCK)
            slope, near, rounded = h[block] @ left, np.ascontiguousarray(h[block, block]), integers[block]
            descend_block(slope, near, own, -high - 1, high, rounded, moved, limit, inside, factors[block])
            left[block] = integers[block] * own - aim[block]
        q[:, live], values[:, live] = integers, inside
        live = live[moved]
        if not len(live):
            break
    return np.asarray(q.T)


def best_scale(q: Float, scale: Float, w: Float, h: Float) -> Float:
    """The scale with the smallest error for given integers, (G, R): a quotient of two quadratic forms."""
    qh = product(q, h)
    below = (qh * q).sum(axis=-1)
    found = (qh * w).sum(axis=-1) / np.where(below > 0, below, 1.0)
    return np.where((below > 0) & (found > 0), found, scale)


def round_layer(w: Float, h: Float, bits: int, shrink: Float, sweeps: int) -> tuple[Float, Float]:
    """Integers and scales of a layer: GPTQ for every candidate scale of every channel, the best of each refined.

    No channel is worse than rounded to nearest at the scale that clips nothing, as `quadratic_error` has it.

    Args:
        w: (G, R, K).
        h: positive definite (G, K, K).
        shrink: candidate scales as shares of the one that clips nothing.
        sweeps: of the descent.

    Returns:
        q (G, R, K) as floats, scale (G, R).
    """
    w, h = working(w), working(h)
    top = weight_range(bits)[1]
    base = unclipped_scale(w, top)
    q, scale = best_of(w, factorised(h), base[:, None] * shrink.astype(w.dtype)[:, None], top)
    single = w.dtype == np.float32
    for _ in range((1 if single else _ROUNDS) if sweeps else 0):
        q = descend(q, scale, w, h, top, min(sweeps, _SINGLE_SWEEPS) if single else sweeps)
        scale = best_scale(q, scale, w, h)
    # Column by column is greedy, and now and then worse than rounding each weight alone.
    plain = nearest(w, base[..., None], top)
    kept = quadratic_error(plain, base, w, h) < quadratic_error(q, scale, w, h)
    return np.where(kept[..., None], plain, q), np.where(kept, base, scale)


def best_of(w: Float, factor: Factor, scales: Float, top: int | Float) -> tuple[Float, Float]:
    """GPTQ for every candidate scale of every rounding wanted; of each the best candidate.

    Args:
        w: (G, R, K).
        scales: (G, n, R), n candidates; or (G, m, n, R) for m roundings of each channel.
        top: largest integer; one for all, or of the shape of `scales`.

    Returns:
        Integers as floats (G, m·R, K), scales (G, m·R); m is 1 for three dimensions.
    """
    groups, rows = w.shape[:2]
    spread = scales.reshape(groups, -1, scales.shape[-2], rows)
    tops = np.broadcast_to(np.asarray(top, w.dtype), scales.shape).reshape(groups, -1)
    q, error = round_columns(w, factor, spread.reshape(groups, -1), tops)
    wanted, candidates = spread.shape[1:3]
    best = error.reshape(spread.shape).argmin(axis=2)
    # Where the best of each lies among all roundings.
    at = (np.arange(wanted)[:, None] * candidates + best) * rows + np.arange(rows)
    at = at.reshape(groups, -1)
    chosen = factor.rows(np.take_along_axis(q, at[:, None], 2))
    return chosen, np.take_along_axis(spread.reshape(groups, -1), at, 1)

"""Second moments of what a layer multiplies its weights with: the data behind Hessian-aware rounding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qcompile.ir import Array, Node

Float = NDArray[np.floating[Any]]
Double = NDArray[np.float64]

_STRIP = 256
"""Rows of a matrix of moments below which products of parts are no faster."""

_CHUNK = 1 << 24
"""Elements of columns that exist at a time."""

SINGLE_FROM = 1024
"""Columns from which second moments, and rounding by them, are in single precision, in half the time: H stays well
within what it resolves, as it is damped, and only integers that were as good either way come out differently."""


@dataclass(frozen=True, slots=True, eq=False)
class _Windows:
    """The windows of some output positions.

    Attributes:
        at: the positions, indices into the flattened output, (P,).
        index: of the windows' elements in the flattened input, (P, kernel); any where they lie in the padding.
        inside: 1 where they lie inside the input, 0 in the padding.
    """

    at: Tensor
    index: Tensor
    inside: Tensor


class Moments:
    """Running moments of a layer's columns x (rounded network) and of d = x_float − x (what rounding did to them).

    Where the layer's output is added to another value, e is that value in the float network minus the rounded one's.
    t = w d + e is what the layer's output lacks.

    A column holds the K numbers one output element is a weighted sum of; layers in groups have columns of their
    own for each group.  Memory does not depend on the number of samples.

    Samples are dealt in turn to `folds` parts, so that what is fitted to one part can be judged by another.

    Attributes:
        counts: columns seen, per group and fold.
        fold_x, fold_d: sums, float64 (folds, G, K).
        fold_e: sums, float64 (folds, G, R).
        fold_xx: Σ x xᵀ, (folds, G, K, K); float64, and float32 from `SINGLE_FROM` columns.
        fold_tx: Σ t xᵀ, (folds, G, R, K), likewise.

    Args:
        node: conv2d or linear.
        weights: its weights.
        positions: most output positions looked at per sample and convolution, drawn anew for each batch.
        rng: draws them.
        second: whether second moments are wanted; there are none otherwise.
        folds: number of parts.
    """

    def __init__(
        self,
        node: Node,
        weights: Array,
        positions: int,
        rng: np.random.Generator,
        second: bool = True,
        folds: int = 1,
    ) -> None:
        self.second, self.folds = second, folds
        self.node, self.positions, self.rng = node, positions, rng
        self.groups = node.attrs.int("groups") if node.op == "conv2d" else 1
        self.kernel = weights.shape[2:]
        rows = weights.reshape(self.groups, len(weights) // self.groups, -1)
        self.weights = torch.from_numpy(np.array(rows, np.float32))
        size = rows.shape[2]
        self.samples = 0
        self.counts = [0] * folds
        self.fold_x: Double = np.zeros((folds, self.groups, size))
        self.fold_d: Double = np.zeros((folds, self.groups, size))
        self.fold_e: Double = np.zeros((folds, *rows.shape[:2]))
        precision = np.float64 if size < SINGLE_FROM else np.float32
        kept = size if second else 0
        self._upper: Float = np.zeros((folds, self.groups, kept, kept), precision)
        self.fold_tx: Float = np.zeros((folds, *rows.shape[:2], kept), precision)

    @property
    def count(self) -> int:
        """Columns seen, per group."""
        return sum(self.counts)

    @property
    def x(self) -> Double:
        """Σ x over all folds, (G, K)."""
        return np.asarray(self.fold_x.sum(axis=0))

    @property
    def d(self) -> Double:
        """Σ d over all folds, (G, K)."""
        return np.asarray(self.fold_d.sum(axis=0))

    @property
    def e(self) -> Double:
        """Σ e over all folds, (G, R)."""
        return np.asarray(self.fold_e.sum(axis=0))

    @property
    def fold_xx(self) -> Float:
        """See above."""
        for start, stop in _strips(self._upper.shape[-1]):
            self._upper[..., stop:, start:stop] = self._upper[..., start:stop, stop:].swapaxes(-1, -2)
        return self._upper

    @property
    def xx(self) -> Float:
        """Σ x xᵀ over all folds, (G, K, K)."""
        return np.asarray(self.fold_xx.sum(axis=0))

    def add(self, real: Tensor, rounded: Tensor | None = None, missing: Tensor | None = None) -> None:
        """Take in a batch of the layer's input in the float network and in the rounded one, and of e.

        Without a rounded one x is that of the float network and d is 0; without `missing` (the output's shape) e is.
        """
        windows = None if self.node.op == "linear" else self._windows(real)
        for fold in range(self.folds):
            first = (fold - self.samples) % self.folds
            own = real[first :: self.folds]
            if len(own):
                others = (None if x is None else x[first :: self.folds] for x in (rounded, missing))
                self._add(fold, windows, own, *others)
        self.samples += len(real)

    def _add(
        self, fold: int, windows: _Windows | None, real: Tensor, rounded: Tensor | None, missing: Tensor | None
    ) -> None:
        with torch.no_grad():
            if windows is None:
                rows = (None if x is None else x.reshape(1, -1, x.shape[-1]) for x in (rounded, missing))
                self._take(fold, real.reshape(1, -1, real.shape[-1]), *rows)
                return
            step = max(1, _CHUNK // (real.shape[1] * windows.index.numel()))
            for start in range(0, len(real), step):
                part = slice(start, start + step)
                columns = None if rounded is None else self._columns(rounded[part], windows)
                lacking = None if missing is None else self._outputs(missing[part], windows)
                self._take(fold, self._columns(real[part], windows), columns, lacking)

    def _windows(self, x: Tensor) -> _Windows:
        top, left = self.node.attrs.ints("pad")[:2]
        (height, width), (rows, cols), kernel = x.shape[2:], self.node.type.shape[2:], self.kernel
        (sh, sw), (dh, dw) = self.node.attrs.ints("stride"), self.node.attrs.ints("dilation")
        at = np.arange(rows * cols)
        if len(at) > self.positions:
            at = np.sort(self.rng.choice(at, self.positions, replace=False))
        i, j = np.indices(kernel).reshape(2, -1)
        y = (at // cols * sh - top)[:, None] + i * dh
        z = (at % cols * sw - left)[:, None] + j * dw
        inside = (y >= 0) & (y < height) & (z >= 0) & (z < width)
        index = np.where(inside, y * width + z, 0)
        return _Windows(torch.from_numpy(at), torch.from_numpy(index), torch.from_numpy(inside.astype(np.float32)))

    def _columns(self, x: Tensor, windows: _Windows) -> Tensor:
        """(G, n·P, K) of a batch of inputs."""
        n, channels = x.shape[:2]
        taken = x.reshape(n, self.groups, channels // self.groups, -1)[..., windows.index] * windows.inside
        return taken.permute(1, 0, 3, 2, 4).reshape(self.groups, n * len(windows.at), -1)

    def _outputs(self, x: Tensor, windows: _Windows) -> Tensor:
        """(G, n·P, R) of a batch of outputs."""
        n, channels = x.shape[:2]
        taken = x.reshape(n, self.groups, channels // self.groups, -1)[..., windows.at]
        return taken.permute(1, 0, 3, 2).reshape(self.groups, n * len(windows.at), -1)

    def _take(self, fold: int, real: Tensor, rounded: Tensor | None, missing: Tensor | None) -> None:
        x = real if rounded is None else rounded
        self.counts[fold] += x.shape[1]
        self.fold_x[fold] += x.sum(dim=1).double().numpy()
        lacking = missing
        if rounded is not None:
            difference = real - rounded
            self.fold_d[fold] += difference.sum(dim=1).double().numpy()
            if self.second:
                lacking = difference @ self.weights.mT + (0 if missing is None else missing)
        if missing is not None:
            self.fold_e[fold] += missing.sum(dim=1).double().numpy()
        if self.second:
            for start, stop in _strips(x.shape[-1]):
                _accumulate(self._upper[fold, :, start:stop, start:], x[..., start:stop], x[..., start:])
            if lacking is not None:
                _accumulate(self.fold_tx[fold], lacking, x)


def _strips(columns: int) -> list[tuple[int, int]]:
    """Rows of a symmetric matrix, first and behind the last: of each strip only what lies from its diagonal on is
    added up, so that little of it is added up twice."""
    step = max(_STRIP, -(-columns // 4))
    return [(start, min(start + step, columns)) for start in range(0, columns, step)]


def _accumulate(total: Float, a: Tensor, b: Tensor) -> None:
    """Add aᵀ b of each group; products are in single precision whatever the sum is in."""
    if total.dtype == np.float32:
        torch.from_numpy(total).baddbmm_(a.mT, b)
    else:
        total += (a.mT @ b).double().numpy()

"""Second moments of what a layer multiplies its weights with: the data behind Hessian-aware rounding."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qcompile.ir import Node

Float = NDArray[np.float64]

_CHUNK = 1 << 24
"""Elements of columns that exist at a time."""


class Moments:
    """Running moments of a layer's columns x (rounded network) and of d = x_float − x (what rounding did to them).

    A column holds the K numbers one output element is a weighted sum of; layers in groups have columns of their
    own for each group.  Memory does not depend on the number of samples.

    Attributes:
        count: columns seen, per group.
        x, d: sums, float64 (G, K).
        xx: Σ x xᵀ, float64 (G, K, K).
        dx: Σ d xᵀ, float64 (G, K, K).

    Args:
        node: conv2d or linear.
        w_shape: of its weights.
        positions: most output positions looked at per sample and convolution, drawn anew for each batch.
        rng: draws them.
        second: whether second moments are wanted; they stay 0 otherwise.
    """

    def __init__(
        self, node: Node, w_shape: tuple[int, ...], positions: int, rng: np.random.Generator, second: bool = True
    ) -> None:
        self.second = second
        self.node, self.w_shape, self.positions, self.rng = node, w_shape, positions, rng
        self.groups = node.attrs.int("groups") if node.op == "conv2d" else 1
        size = int(np.prod(w_shape[1:]))
        self.count = 0
        self.x: Float = np.zeros((self.groups, size))
        self.d: Float = np.zeros((self.groups, size))
        self.xx: Float = np.zeros((self.groups, size, size))
        self.dx: Float = np.zeros((self.groups, size, size))

    def add(self, real: Tensor, rounded: Tensor) -> None:
        """Take in a batch of the layer's input in the float network and in the rounded one."""
        with torch.no_grad():
            if self.node.op == "linear":
                self._take(real.reshape(1, -1, real.shape[-1]), rounded.reshape(1, -1, real.shape[-1]))
                return
            index, inside = self._windows(real)
            step = max(1, _CHUNK // (real.shape[1] * index.numel()))
            for start in range(0, len(real), step):
                part = slice(start, start + step)
                self._take(self._columns(real[part], index, inside), self._columns(rounded[part], index, inside))

    def _windows(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The window of each chosen output position: indices into the flattened image, (P, kernel), and 1 where they
        lie inside the image, 0 in the padding (their index is then any)."""
        top, left = self.node.attrs.ints("pad")[:2]
        (height, width), (rows, cols), kernel = x.shape[2:], self.node.type.shape[2:], self.w_shape[2:]
        (sh, sw), (dh, dw) = self.node.attrs.ints("stride"), self.node.attrs.ints("dilation")
        at = np.arange(rows * cols)
        if len(at) > self.positions:
            at = np.sort(self.rng.choice(at, self.positions, replace=False))
        i, j = np.indices(kernel).reshape(2, -1)
        y = (at // cols * sh - top)[:, None] + i * dh
        z = (at % cols * sw - left)[:, None] + j * dw
        inside = (y >= 0) & (y < height) & (z >= 0) & (z < width)
        return torch.from_numpy(np.where(inside, y * width + z, 0)), torch.from_numpy(inside.astype(np.float32))

    def _columns(self, x: Tensor, index: Tensor, inside: Tensor) -> Tensor:
        """(G, n·P, K) of a batch."""
        n, channels = x.shape[:2]
        taken = x.reshape(n, self.groups, channels // self.groups, -1)[..., index] * inside
        return taken.permute(1, 0, 3, 2, 4).reshape(self.groups, n * len(index), -1)

    def _take(self, real: Tensor, rounded: Tensor) -> None:
        difference = real - rounded
        self.count += rounded.shape[1]
        self.x += rounded.sum(dim=1).double().numpy()
        self.d += difference.sum(dim=1).double().numpy()
        if not self.second:
            return
        self.xx += (rounded.mT @ rounded).double().numpy()
        self.dx += (difference.mT @ rounded).double().numpy()

"""What the analyses need of torch tensors beside running the graph: statistics and fake quantisation.

`passes` never imports torch; it uses these functions and the `Tensor` they export.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qcompile.ir import Array, Grid, int_range

__all__ = [
    "Tensor",
    "count_zeros",
    "extremes",
    "fake_quantize",
    "histogram",
    "inference",
    "to_numpy",
    "to_tensor",
]

_CHUNK = 1 << 20
"""Elements binned at a time: the temporaries stay in the cache."""


def extremes(x: Tensor) -> tuple[float, float]:
    """Smallest and largest element; NaN where any element is NaN."""
    lo, hi = torch.aminmax(x.detach())
    return float(lo), float(hi)


def count_zeros(x: Tensor) -> int:
    """How many elements are exactly 0."""
    return x.numel() - int(torch.count_nonzero(x.detach()))


def histogram(x: Tensor, width: float, start: int, bins: int) -> NDArray[np.int64]:
    """Counts of floor(x / width) − start in 0 … bins − 1, int64 (bins,).

    Every element must fall into a bin.  `width` is a power of two, so that the division is exact and the
    counts do not depend on how elements are grouped (torch.histc rounds at the edges).
    """
    counts = torch.zeros(bins, dtype=torch.int64)
    for part in torch.split(x.detach().reshape(-1), _CHUNK):
        bin_of = part.mul(1 / width).floor_().sub_(start).to(torch.int32)
        counts += torch.bincount(bin_of, minlength=bins)
    return np.asarray(counts.numpy())


def fake_quantize(x: Tensor, grid: Grid) -> Tensor:
    """The real value each element is represented by on a grid: scale · (clip(round(x/scale) + z) − z)."""
    # The same numbers as of torch's own operator, which takes one element at a time.
    if torch.is_grad_enabled() and x.requires_grad:
        return torch.as_tensor(_StraightThrough.apply(x, grid))  # type: ignore[no-untyped-call]
    return _values(_steps(x, grid), grid)


def _steps(x: Tensor, grid: Grid) -> Tensor:
    """Integers before they are clipped to the grid's range."""
    return x.mul(float(1 / np.float32(grid.scale))).round_().add_(grid.zero)


def _values(steps: Tensor, grid: Grid) -> Tensor:
    """Clipped integers as the real values they stand for, in place."""
    return steps.clamp_(*int_range(grid.dtype)).sub_(grid.zero).mul_(float(np.float32(grid.scale)))


class _StraightThrough(torch.autograd.Function):
    """Rounding with the gradient of clipping: 1 inside the range, 0 outside (Bengio et al. 2013)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, grid: Grid) -> Tensor:
        steps, (lo, hi) = _steps(x, grid), int_range(grid.dtype)
        ctx.save_for_backward((steps >= lo).logical_and_(steps <= hi))
        return _values(steps, grid)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (inside,) = ctx.saved_tensors
        return gradient * inside, None


def image_order(x: Tensor) -> Tensor:
    """Images with the channels of a pixel side by side, as every operator then leaves them: convolutions are faster."""
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x


def inference() -> AbstractContextManager[object]:
    """A context in which nothing is recorded for gradients."""
    return torch.no_grad()


def to_tensor(x: Array) -> Tensor:
    """A float32 copy."""
    return torch.tensor(np.ascontiguousarray(x), dtype=torch.float32)


def to_numpy(x: Tensor) -> Array:
    return np.asarray(x.detach().cpu().numpy())

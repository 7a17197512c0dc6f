"""What the analyses need of torch tensors beside running the graph: statistics and fake quantisation.

`passes` never imports torch; it uses these functions and the `Tensor` they export.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qcompile.ir import Array, Grid, int_range

__all__ = ["Tensor", "count_zeros", "extremes", "fake_quantize", "histogram", "to_numpy"]

_CHUNK = 1 << 23
"""Elements per call of torch.histc: its counts are float32, exact below 2^24."""


def extremes(x: Tensor) -> tuple[float, float]:
    """Smallest and largest element; NaN where any element is NaN."""
    lo, hi = torch.aminmax(x.detach())
    return float(lo), float(hi)


def count_zeros(x: Tensor) -> int:
    """How many elements are exactly 0."""
    return x.numel() - int(torch.count_nonzero(x.detach()))


def histogram(x: Tensor, lo: float, hi: float, bins: int) -> NDArray[np.int64]:
    """Counts in `bins` equal bins of [lo, hi), int64 (bins,); elements outside do not count."""
    counts = np.zeros(bins, np.int64)
    for part in x.detach().reshape(-1).split(_CHUNK):
        counts += torch.histc(part, bins, lo, hi).numpy().astype(np.int64)
    return counts


def fake_quantize(x: Tensor, grid: Grid) -> Tensor:
    """The real value each element is represented by on an unsigned grid: scale · (clip(round(x/s) + z) − z)."""
    lo, hi = int_range(grid.dtype)
    return torch.fake_quantize_per_tensor_affine(x, grid.scale, grid.zero, lo, hi)


def to_numpy(x: Tensor) -> Array:
    return np.asarray(x.detach().cpu().numpy())

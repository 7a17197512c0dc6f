"""Linear algebra on positive definite matrices that NumPy does without, or slower than LAPACK behind torch.

Arrays come and go as NumPy's; they keep their precision.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Float = NDArray[np.floating[Any]]


def cholesky(h: Float) -> Float:
    """L lower triangular with h = L Lᵀ, (G, K, K).

    Raises:
        numpy.linalg.LinAlgError: h is not positive definite, in double precision either.
    """
    return np.asarray(_factor(h).numpy())


def solve_positive(h: Float, b: Float) -> Float:
    """x with h x = b, h positive definite: (G, K, K), (G, K, R) → (G, K, R).

    Raises:
        numpy.linalg.LinAlgError: as `cholesky`.
    """
    factor = _factor(h)
    return np.asarray(torch.cholesky_solve(_tensor(b).to(factor.dtype), factor).numpy().astype(h.dtype, copy=False))


def product(a: Float, b: Float) -> Float:
    """a b for large matrices (G, R, K), (G, K, N), by the threads that run the rest of torch: two pools that take turns
    wait for each other's."""
    return np.asarray((_tensor(a) @ _tensor(b)).numpy())


def _factor(h: Float) -> Tensor:
    factor: Tensor
    factor, failed = torch.linalg.cholesky_ex(_tensor(h))
    if failed.any() and h.dtype == np.float32:
        # Nearly singular: what single precision rounds away can be what makes it positive.
        factor, failed = torch.linalg.cholesky_ex(_tensor(h).double())
        factor = factor.float()
    if failed.any():
        raise np.linalg.LinAlgError("the matrix is not positive definite")
    return factor


def _tensor(x: Float) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(x))

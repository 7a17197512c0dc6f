"""Factors of positive definite matrices: exact where they should be, refused where there are none."""

from __future__ import annotations

import numpy as np
import pytest

from qcompile.exec.linear import cholesky, solve_positive


def positive(rng: np.random.Generator, groups: int, size: int) -> np.ndarray:
    x = rng.normal(size=(groups, 2 * size, size))
    return x.swapaxes(1, 2) @ x


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_factor_and_solution(dtype: type) -> None:
    rng = np.random.default_rng(0)
    h = positive(rng, 3, 7).astype(dtype)
    b = rng.normal(size=(3, 7, 2)).astype(dtype)
    close = 1e-4 if dtype is np.float32 else 1e-12
    lower = cholesky(h)
    assert lower.dtype == dtype and not np.triu(lower, 1).any()
    np.testing.assert_allclose(lower @ lower.swapaxes(1, 2), h, rtol=close, atol=close)
    found = solve_positive(h, b)
    assert found.dtype == dtype
    np.testing.assert_allclose(h @ found, b, rtol=10 * close, atol=10 * close)


def test_nearly_singular_in_single_precision() -> None:
    """The last pivot is what single precision rounds away: b² is rounded up, to just what it is subtracted from."""
    numbers = np.linspace(0.5, 0.9, 50, dtype=np.float32)
    b = next(b for b in numbers if float(b * b) > float(b) ** 2)
    h = np.array([[[1, b], [b, b * b]]], np.float32)
    lower = cholesky(h)
    assert lower.dtype == np.float32 and lower[0, 1, 1] > 0


def test_not_positive_definite() -> None:
    with pytest.raises(np.linalg.LinAlgError, match="not positive definite"):
        cholesky(np.array([[[1.0, 2.0], [2.0, 1.0]]]))
    with pytest.raises(np.linalg.LinAlgError, match="not positive definite"):
        solve_positive(np.array([[[1.0, 2.0], [2.0, 1.0]]], np.float32), np.ones((1, 2, 1), np.float32))

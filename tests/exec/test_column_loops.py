"""Compiled loops over columns: what NumPy gives one column at a time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from qcompile.exec.column_loops import descend_block, round_block

COLUMNS, ROWS = 24, 300


def arrays(seed: int, precision: type) -> tuple[np.ndarray, ...]:
    """Columns, a symmetric matrix, scales and ends of the integers, each row's its own."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(COLUMNS, ROWS)).astype(precision)
    h = rng.normal(size=(COLUMNS, COLUMNS)).astype(precision) / 8
    top = rng.choice([1, 3, 7], ROWS).astype(precision)
    scale = rng.uniform(0.1, 1.0, ROWS).astype(precision)
    return x, h + h.T + 4 * np.eye(COLUMNS, dtype=precision), scale, -top - 1, top


@pytest.mark.parametrize("precision", [np.float32, np.float64])
def test_columns_are_rounded_from_the_last_and_make_up_for_those_behind(precision: type) -> None:
    aim, spread, scale, low, high = arrays(0, precision)
    wanted, pivots = aim + precision(0.25), np.arange(1, COLUMNS + 1, dtype=precision)
    q, errors, total = np.empty(aim.shape, np.int8), np.empty_like(aim), np.ones(ROWS, precision)
    expected, left, sums = wanted.copy(), np.empty_like(aim), total.copy()
    for j in reversed(range(COLUMNS)):
        value = np.clip(np.rint(expected[j] / scale), low, high)
        left[j] = value * scale - aim[j]
        sums += pivots[j] * np.square(value * scale - expected[j])
        for k in range(j):
            expected[k] -= spread[j, k] * left[j]
    round_block(wanted, aim, spread, pivots, scale, low, high, q, errors, total)
    np.testing.assert_array_equal(q, np.rint((left + aim) / scale))
    np.testing.assert_array_equal(errors, left)
    np.testing.assert_array_equal(total, sums)


@pytest.mark.parametrize("precision", [np.float32, np.float64])
def test_a_descent_takes_each_column_to_its_best_integer(precision: type) -> None:
    slope, h, scale, low, high = arrays(1, precision)
    rng = np.random.default_rng(2)
    q = np.clip(rng.integers(-3, 4, slope.shape), low, high).astype(precision)
    q[:, 0], slope[:, 0] = 0, 0  # a row that has nowhere to go
    expected, downhill = q.copy(), slope.copy()
    for j in range(COLUMNS):
        best = np.clip(np.rint(expected[j] - downhill[j] / (h[j, j] * scale)), low, high)
        step, expected[j] = (best - expected[j]) * scale, best
        for k in range(j + 1, COLUMNS):
            downhill[k] += h[k, j] * step
    moved, before = np.zeros(ROWS, bool), q.copy()
    none = np.zeros((COLUMNS, 0, 2), precision)
    descend_block(slope, h, scale, low, high, q, moved, np.zeros(1, precision), np.zeros((0, ROWS), precision), none)
    np.testing.assert_array_equal(q, expected)
    np.testing.assert_array_equal(moved, (q != before).any(axis=0))
    assert not moved[0] and moved.mean() > 0.9


def test_forms_stay_within_their_limit() -> None:
    """The sum of two columns is one form; without it the descent would leave the limit."""
    slope, h, scale, low, high = arrays(3, np.float64)
    q, limit = np.zeros_like(slope), np.array([1.0])
    factors = np.zeros((COLUMNS, 2, 2))
    factors[:, 0] = [[column // 2, 1] for column in range(COLUMNS)]
    u, free = np.zeros((COLUMNS // 2, ROWS)), q.copy()
    moved, nothing = np.zeros(ROWS, bool), (np.zeros((0, ROWS)), np.zeros((COLUMNS, 0, 2)))
    descend_block(slope.copy(), h, scale, low, high, free, moved, limit, *nothing)
    descend_block(slope, h, scale, low, high, q, moved, limit, u, factors)
    np.testing.assert_array_equal(u, q[::2] + q[1::2])
    assert np.abs(u).max() == 1 and np.abs(free[::2] + free[1::2]).max() > 1


def test_without_a_folder_to_keep_it_in_code_is_compiled_all_the_same(tmp_path: Path) -> None:
    """A home and a package that nobody may write to: what is compiled lives as long as the process."""
    said = """
import numba
from numba.core import caching
caching.CompileResultCacheImpl._locator_classes = []
import numpy as np
from qcompile.exec.column_loops import round_block
x, q, n = np.array([[0.6]]), np.zeros((1, 1), np.int8), np.ones(1)
round_block(x.copy(), x, np.ones((1, 1)), n, n, -n, n, q, x.copy(), n.copy())
print(q[0, 0])
"""
    done = subprocess.run([sys.executable, "-c", said], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr

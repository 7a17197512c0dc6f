"""AdaRound and AdaQuant on second moments: integers, never worse than nearest, the same every time."""

from __future__ import annotations

import numpy as np
import pytest

from passes.quantize.gptq import damped, nearest, quadratic_error
from passes.quantize.learned import adaquant, adaround


def problem(seed: int, groups: int, rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Weights, and second moments of columns that share most of what they say."""
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(groups, columns, columns)) + 3 * rng.normal(size=(groups, columns, 1))
    return rng.normal(size=(groups, rows, columns)), damped(mix @ mix.swapaxes(1, 2) / columns)


@pytest.mark.parametrize("shape", [(1, 12, 36), (10, 1, 9), (2, 4, 18)])
@pytest.mark.parametrize("bits", [2, 4, 6])
def test_no_channel_is_worse_than_nearest_and_the_layer_is_much_better(shape: tuple[int, int, int], bits: int) -> None:
    w, h = problem(1, *shape)
    top = (1 << (bits - 1)) - 1
    scale = 0.8 * np.abs(w).max(axis=2) / top
    plain = quadratic_error(nearest(w, scale[..., None], top), scale, w, h)
    up_or_down = adaround(w, h, scale, top)
    anywhere, own = adaquant(w, h, scale, top)
    for q, s in ((up_or_down, scale), (anywhere, own)):
        assert (q == np.rint(q)).all() and q.min() >= -top - 1 and q.max() <= top and (s > 0).all()
        assert (quadratic_error(q, s, w, h) <= plain).all()
        assert quadratic_error(q, s, w, h).sum() < 0.8 * plain.sum()


def test_adaround_stays_between_the_neighbours() -> None:
    w, h = problem(2, 1, 8, 24)
    scale = np.abs(w).max(axis=2) / 7
    q = adaround(w, h, scale, 7)
    assert (np.abs(q - w / scale[..., None]) < 1 + 1e-9).all()


def test_independent_columns_are_rounded_to_nearest() -> None:
    w, _ = problem(3, 1, 6, 20)
    h = np.eye(20)[None]
    scale = np.abs(w).max(axis=2) / 7
    np.testing.assert_array_equal(adaround(w, h, scale, 7), nearest(w, scale[..., None], 7))


def test_the_same_every_time() -> None:
    w, h = problem(4, 1, 6, 20)
    scale = np.abs(w).max(axis=2) / 7
    np.testing.assert_array_equal(adaround(w, h, scale, 7), adaround(w, h, scale, 7))
    for one, other in zip(adaquant(w, h, scale, 7), adaquant(w, h, scale, 7), strict=True):
        np.testing.assert_array_equal(one, other)

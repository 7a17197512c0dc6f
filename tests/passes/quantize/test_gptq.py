"""GPTQ on its own objective beside rounding to nearest: a thousand planted layers, no channel worse."""

from __future__ import annotations

import numpy as np
import pytest

from passes.quantize.gptq import (
    SINGLE_FROM,
    best_of,
    damped,
    factorised,
    gptq,
    nearest,
    quadratic_error,
    round_columns,
    round_layer,
    unclipped_scale,
)

SHRINK = np.array([1.0, 0.9, 0.8])


def planted(seed: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Weights (G, R, K), second moments (G, K, K) from independent to nearly singular, and a width."""
    rng = np.random.default_rng(seed)
    groups, rows, columns = int(rng.integers(1, 4)), int(rng.integers(1, 5)), int(rng.integers(2, 28))
    samples = int(rng.integers(2, 3 * columns))
    x = rng.normal(size=(groups, samples, columns)) + rng.choice([0, 1, 5]) * rng.normal(size=(groups, samples, 1))
    x *= 10 ** rng.uniform(-1, 1, size=columns)
    w = rng.standard_t(3, size=(groups, rows, columns))
    return w, damped(x.swapaxes(1, 2) @ x / samples), int(rng.choice([2, 3, 4, 6, 8]))


@pytest.mark.parametrize("sweeps", [0, 3])
def test_no_channel_is_worse_than_nearest(sweeps: int) -> None:
    for seed in range(1000):
        w, h, bits = planted(seed)
        top = (1 << (bits - 1)) - 1
        scale = unclipped_scale(w, top)
        plain = quadratic_error(nearest(w, scale[..., None], top), scale, w, h)
        q, own = round_layer(w, h, bits, SHRINK, sweeps)
        found = quadratic_error(q, own, w, h)
        assert (found <= plain * (1 + 1e-9)).all(), (seed, bits, w.shape, found / plain)


def test_the_errors_of_all_roundings_are_their_quadratic_errors() -> None:
    for seed in range(30):
        w, h, bits = planted(seed)
        top = (1 << (bits - 1)) - 1
        scales = np.abs(w).max(axis=2)[:, None] / top * SHRINK[:, None]
        factor = factorised(h)
        q, error = round_columns(w, factor, scales.reshape(len(w), -1), top)
        apart = [gptq(w, h, scales[:, i], top) for i in range(len(SHRINK))]
        together = factor.rows(q)
        np.testing.assert_array_equal(together, np.concatenate(apart, axis=1))
        wanted = [quadratic_error(one, scales[:, i], w, h) for i, one in enumerate(apart)]
        np.testing.assert_allclose(error, np.concatenate(wanted, axis=1), rtol=1e-8)
        best, scale = best_of(w, factor, scales, top)
        np.testing.assert_allclose(quadratic_error(best, scale, w, h), np.min(wanted, axis=0), rtol=1e-8)


def test_single_precision_is_as_good() -> None:
    """Columns as many as layers that run in single precision have, and few samples: damping carries most of H."""
    rng = np.random.default_rng(5)
    x = np.maximum(rng.normal(size=(1, 300, SINGLE_FROM)) + rng.normal(size=(1, 300, 1)), 0)
    w, h = rng.normal(size=(1, 6, SINGLE_FROM)), damped(x.swapaxes(1, 2) @ x / 300)
    scale = np.abs(w).max(axis=2) / 7
    double = quadratic_error(gptq(w, h, scale, 7), scale, w, h)
    q = gptq(w.astype(np.float32), h.astype(np.float32), scale.astype(np.float32), 7)
    assert q.dtype == np.float32
    single = quadratic_error(q.astype(np.float64), scale, w, h)
    assert single.sum() < 1.02 * double.sum() and double.sum() < 1.02 * single.sum()
    chosen, own = round_layer(w, h, 4, SHRINK, 3)
    assert chosen.dtype == own.dtype == np.float32
    assert quadratic_error(chosen.astype(np.float64), own.astype(np.float64), w, h).sum() < double.sum()

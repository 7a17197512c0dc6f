"""GPTQ on its own objective beside rounding to nearest: a thousand planted layers, no channel worse."""

from __future__ import annotations

import numpy as np
import pytest

from passes.quantize.gptq import damped, quadratic_error, round_layer

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
        scale = np.abs(w).max(axis=2) / top
        nearest = np.clip(np.rint(w / scale[..., None]), -top, top)
        plain = quadratic_error(nearest, scale, w, h)
        q, own = round_layer(w, h, bits, SHRINK, sweeps)
        found = quadratic_error(q, own, w, h)
        assert (found <= plain * (1 + 1e-9)).all(), (seed, bits, w.shape, found / plain)

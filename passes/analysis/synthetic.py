"""Calibration data for a user who gives none: noise shaped like what the first layer expects."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from qcompile.ir import Array, Graph


def synthetic_batches(graph: Graph, rng: np.random.Generator, samples: int, batch: int) -> Iterator[dict[str, Array]]:
    """Batches of Gaussian inputs, float32, by input name.

    Images are smoothed along both axes (natural images have a falling spectrum, and white noise would drive the
    activations of trained filters far below their usual range), then brought back to the deviation of the noise.
    """
    for start in range(0, samples, batch):
        count = min(batch, samples - start)
        yield {port.name: _noise(rng, (count, *port.type.sample)) for port in graph.inputs}


def _noise(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    x = rng.standard_normal(shape)
    if len(shape) == 4 and min(shape[2:]) >= 8:
        for axis in (2, 3):
            x = (np.roll(x, 1, axis) + 2 * x + np.roll(x, -1, axis)) / 4 + x.mean(axis=axis, keepdims=True)
        x /= x.std(axis=(1, 2, 3), keepdims=True)
    return x.astype(np.float32)

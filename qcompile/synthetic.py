"""Calibration data for a user who gives none."""

from __future__ import annotations

import numpy as np

from qcompile.ir import Array, Graph


def synthetic_data(graph: Graph, seed: int, samples: int) -> tuple[list[dict[str, Array]], str]:
    """Batches by input name, and how they were made.

    Noise, smoothed along both axes of images (natural images have a falling spectrum, and white noise drives the
    activations of trained filters far below their usual range); then, where the network has BatchNorm layers, fitted
    to the statistics they remember.

    Args:
        graph: float graph as captured, BatchNorm not folded.
    """
    from qcompile.exec.torch_distill import distill_inputs

    rng = np.random.default_rng(seed)
    start = {port.name: _noise(rng, (samples, *port.type.sample)) for port in graph.inputs}
    if any(node.op == "batch_norm" for node in graph.nodes):
        return [distill_inputs(graph, start)], "inputs fitted to the model's BatchNorm statistics"
    return [start], "smoothed Gaussian noise of unit deviation"


def _noise(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    x = rng.standard_normal(shape)
    if len(shape) == 4 and min(shape[2:]) >= 8:
        for axis in (2, 3):
            x = (np.roll(x, 1, axis) + 2 * x + np.roll(x, -1, axis)) / 4 + x.mean(axis=axis, keepdims=True)
        x /= x.std(axis=(1, 2, 3), keepdims=True)
    return x.astype(np.float32)

"""Calibration data for a user who gives none."""

from __future__ import annotations

import numpy as np

from qcompile.ir import Array, Graph

_FALL = (1.0, 1.5, 2.0)
"""Exponents α of amplitudes that fall as 1/f^α; natural images lie at 1 (Field 1987), small and smooth ones higher."""

_USUAL = 1.5
"""The exponent where nothing tells."""

_SHARED = 0.9
"""Correlation between the channels of pictures: they show the same things."""


def synthetic_data(graph: Graph, seed: int, samples: int) -> tuple[list[dict[str, Array]], str]:
    """Batches by input name, and how they were made.

    Noise with a falling spectrum, as natural images have: white noise drives the activations of trained filters far
    below their usual range.  Where the network has BatchNorm layers, the spectrum, the unit and then every number are
    fitted to the statistics they remember.

    Args:
        graph: float graph as captured, BatchNorm not folded.
    """
    from qcompile.exec.torch_distill import distill_inputs

    rng = np.random.default_rng(seed)
    if any(node.op == "batch_norm" for node in graph.nodes):
        starts = [_inputs(graph, rng, samples, fall) for fall in _FALL]
        return [distill_inputs(graph, starts)], "inputs fitted to the model's BatchNorm statistics"
    return [_inputs(graph, rng, samples, _USUAL)], "Gaussian noise of unit deviation with the spectrum of images"


def _inputs(graph: Graph, rng: np.random.Generator, samples: int, fall: float) -> dict[str, Array]:
    return {port.name: _noise(rng, (samples, *port.type.sample), fall) for port in graph.inputs}


def _noise(rng: np.random.Generator, shape: tuple[int, ...], fall: float) -> Array:
    """Mean 0 and deviation 1 over all; images differ in brightness and contrast, as pictures do."""
    x = rng.standard_normal(shape)
    if len(shape) == 4 and min(shape[2:]) >= 8:
        if shape[1] == 3:
            x = np.sqrt(_SHARED) * rng.standard_normal((shape[0], 1, *shape[2:])) + np.sqrt(1 - _SHARED) * x
        rows, cols = np.fft.fftfreq(shape[2])[:, None], np.fft.rfftfreq(shape[3])[None]
        # Brightness, the frequency 0, counts like the lowest other one.
        frequency = np.maximum(np.hypot(rows, cols), 1 / max(shape[2:]))
        x = np.fft.irfft2(np.fft.rfft2(x) / frequency**fall, s=shape[2:])
        x /= x.std()
    return x.astype(np.float32)

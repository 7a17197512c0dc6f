"""Rounding as a small learning problem per layer: AdaRound and AdaQuant on second moments.

Both minimise (q·s − w) H (q·s − w)ᵀ for each output channel by Adam; H holds all that the layer's output error
depends on, so every step sees all calibration samples at once and nothing is drawn.  Neither returns a channel worse
than rounding to nearest.  Shapes as in `passes.quantize.gptq`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from passes.quantize.gptq import Float, nearest, quadratic_error

STEPS = 400

_STRETCH = (-0.1, 1.1)
"""Ends of the rectified sigmoid (Nagel et al. 2020, equation 23)."""

_REGULARISER = 0.01
"""Of AdaRound, per weight, beside the error of the layer in units of that of rounding to nearest, times K."""

_WARM = 0.2
"""Share of the steps before the regulariser starts."""


@dataclass
class _Adam:
    """Adam (Kingma & Ba 2015) on one array, with its usual decays."""

    rate: float
    steps: int = 0
    first: Float = field(default_factory=lambda: np.zeros(()))
    second: Float = field(default_factory=lambda: np.zeros(()))

    def __call__(self, gradient: Float) -> Float:
        """The step to be subtracted."""
        self.steps += 1
        self.first = 0.9 * self.first + 0.1 * gradient
        self.second = 0.999 * self.second + 0.001 * gradient**2
        mean = self.first / (1 - 0.9**self.steps)
        root = np.sqrt(self.second / (1 - 0.999**self.steps))
        return np.asarray(self.rate * mean / (root + 1e-12))


def adaround(w: Float, h: Float, scale: Float, top: int, steps: int = STEPS) -> Float:
    """Each weight to the integer below or above it, learned through a rectified sigmoid that is driven to its ends.

    Source: Nagel et al. 2020, section 3; the exponent of the regulariser falls from 20 to 2.

    Returns:
        Integers as float64, (G, R, K).
    """
    start = nearest(w, scale[..., None], top)
    unit = np.maximum(quadratic_error(start, scale, w, h), 1e-30)[..., None]
    low, high = _STRETCH
    below = np.clip(np.floor(w / scale[..., None]), -top - 1, top - 1)
    share = np.clip(w / scale[..., None] - below, 0.01, 0.99)
    v = np.log((share - low) / (high - share))
    adam, size = _Adam(0.02), w.shape[2]
    for step in range(steps):
        sigmoid = 1 / (1 + np.exp(-v))
        up = np.clip(sigmoid * (high - low) + low, 0, 1)
        gradient = 2 * scale[..., None] * (((below + up) * scale[..., None] - w) @ h) / unit * size
        progress = (step / steps - _WARM) / (1 - _WARM)
        if progress > 0:
            beta = 2 + 18 * 0.5 * (1 + np.cos(np.pi * progress))
            away = 2 * up - 1
            gradient = gradient - _REGULARISER * size * 2 * beta * np.sign(away) * np.abs(away) ** (beta - 1)
        inside = (up > 0) & (up < 1)
        v = v - adam(gradient * inside * sigmoid * (1 - sigmoid) * (high - low))
    found = below + (np.clip(1 / (1 + np.exp(-v)) * (high - low) + low, 0, 1) >= 0.5)
    return _better(start, scale, found, scale, w, h)[0]


def adaquant(w: Float, h: Float, scale: Float, top: int, steps: int = STEPS) -> tuple[Float, Float]:
    """Weights move anywhere on the grid and scales with them; gradients pass straight through the rounding.

    Source: Hubara et al. 2021, section 3.1.  The best integers and scale seen are kept, channel by channel.

    Returns:
        Integers as float64 (G, R, K), scales (G, R).
    """
    best, best_scale_ = nearest(w, scale[..., None], top), scale
    latent, log_scale = w / scale[..., None], np.zeros_like(scale)
    weights, scales = _Adam(0.02), _Adam(0.001)
    for _ in range(steps):
        s = scale * np.exp(log_scale)
        q = nearest(latent, np.ones(()), top)
        best, best_scale_ = _better(best, best_scale_, q, s, w, h)
        slope = (q * s[..., None] - w) @ h
        latent = np.clip(latent - weights(slope * s[..., None]), -top - 1.49, top + 0.49)
        log_scale = log_scale - scales((slope * q).sum(axis=-1) * s)
    return best, best_scale_


def _better(q: Float, scale: Float, other: Float, other_scale: Float, w: Float, h: Float) -> tuple[Float, Float]:
    """The one of two roundings with the smaller error, channel by channel; the first where they are equal."""
    worse = quadratic_error(other, other_scale, w, h) >= quadratic_error(q, scale, w, h)
    return np.where(worse[..., None], q, other), np.where(worse, scale, other_scale)

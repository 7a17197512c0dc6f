"""The bias that makes a rounded layer's mean output, channel by channel, what the float layer's is."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]


def corrected_bias(bias: Float, w: Float, rounded: Float, x: Float, d: Float, e: Float) -> Float:
    """b + mean(w (x + d)) − mean(w' x) + mean(e): the mean shift of every channel, folded into its bias.

    It takes back what rounding the weights and what rounding all layers before did to the mean, clipped activations
    included (Nagel et al. 2019, section 4.2, with measured means).

    Args:
        bias: (O,), real.
        w, rounded: float and rounded weights in real units, (G, R, K) with G·R = O.
        x: mean column of the rounded network, (G, K).
        d: mean of the float network's columns minus those, (G, K).
        e: mean of what a value that the output is added to lacks, (G, R).
    """
    shift = np.einsum("grk,gk->gr", w - rounded, x) + np.einsum("grk,gk->gr", w, d) + e
    return np.asarray(bias + shift.reshape(-1))

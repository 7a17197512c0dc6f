"""How far second moments can be trusted: shrinkage chosen by cross-validation, layer by layer.

A classifier behind a global pooling sees one column per sample: 160 images say nothing about most directions of 1,280
inputs, and rounding that hides its error there fails on the next image.  Samples lie in two halves; what is fitted
to one half is judged by the other.
"""

from __future__ import annotations

import numpy as np

from passes.quantize.gptq import Float, follow, gptq, quadratic_error, shrunk

FOLLOW_DAMPINGS = (0.05, 0.2, 1.0, np.inf)
"""Of `follow`, as shares of the mean of diag H; infinite: the layer does not make up for anything."""

SHARES = (0.0, 0.1, 0.3, 1.0)
"""Of the off-diagonal moments taken away before GPTQ; 1 is rounding to nearest, with scales chosen by error."""


def choose_follow(w: Float, xx: Float, tx: Float) -> float:
    """The damping of `follow` whose weights, fitted to one half, are closest to the float outputs on the other.

    E|v x − w x − t|² = (v−w) E[xxᵀ] (v−w)ᵀ − 2 E[t xᵀ] (v−w)ᵀ + what does not depend on v.

    Args:
        w: (G, R, K).
        xx: means over each half of x xᵀ, (2, G, K, K).
        tx: the same of t xᵀ, (2, G, R, K).
    """
    risks = []
    for damping in FOLLOW_DAMPINGS:
        risk = 0.0
        for own, other in ((0, 1), (1, 0)) if damping != np.inf else ():
            change = follow(w, xx[own], tx[own], damping) - w
            risk += float(((change @ xx[other] - 2 * tx[other]) * change).sum())
        risks.append(risk)
    return FOLLOW_DAMPINGS[int(np.argmin(risks))]


def choose_share(w: Float, xx: Float, scale: Float, top: int) -> float:
    """The shrinkage with which integers found on one half have the smallest error on the other.

    Args:
        w: (G, R, K), the real weights to be rounded.
        xx: means over each half, (2, G, K, K).
        scale: (G, R).
    """
    risks = []
    for share in SHARES:
        if share == 1.0:
            q = np.clip(np.rint(w / scale[..., None]), -top, top)
            risks.append(sum(float(quadratic_error(q, scale, w, xx[half]).sum()) for half in (0, 1)))
            continue
        found = (gptq(w, shrunk(xx[own], share), scale, top) for own in (0, 1))
        risks.append(sum(float(quadratic_error(q, scale, w, xx[1 - own]).sum()) for own, q in enumerate(found)))
    return SHARES[int(np.argmin(risks))]

"""The integer weights and bias of one layer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qcompile.ir import Array, Graph, Grid, Node, int_range
from qcompile.pm.facts import Rounded
from qcompile.semantics.grids import quantize_weights, weight_scales

ScaleMemo = dict[tuple[str, int], NDArray[np.float64]]
"""(layer, weight bits) → scale of each output channel."""

_BIAS_LIMIT = 2.0**29


@dataclass(frozen=True, slots=True)
class IntegerWeights:
    """Attributes:
    w: int8, the layer's shape.
    b: int32 (O,), at scale s_x·s_w, the input's zero point folded in: b − z·Σw.
    scale: s_w, float64 (O,).
    reach: largest magnitude of the sum in real units, over channels and any input on the grid.
    """

    w: Array
    b: Array
    scale: NDArray[np.float64]
    reach: float


def integer_weights(
    graph: Graph, node: Node, bits: int, grid: Grid, memo: ScaleMemo, rounded: Rounded | None = None
) -> IntegerWeights:
    """A layer's weights at `bits` and its bias in int32, for an input on `grid`: those in `rounded`, else to nearest.

    Where a channel's weights are so small that its bias would not fit 2^29 steps, its scale grows until it does:
    the weights of such a channel are negligible beside the bias.
    """
    w = graph.const(node, "w")
    if rounded is not None and rounded.bits == bits:
        b, chosen = rounded.b, rounded.scale
    else:
        rounded = None
        bias = graph.const_or(node, "b")
        b = np.zeros(len(w)) if bias is None else bias.astype(np.float64)
        key = (node.name, bits)
        if key not in memo:
            memo[key] = weight_scales(w, bits)
        chosen = memo[key]
    scale = np.maximum(chosen, np.abs(b) / (grid.scale * _BIAS_LIMIT))
    if rounded is None:
        q = quantize_weights(w, bits, scale)
    else:
        # Channels whose scale had to grow are rounded again; all others keep their integers.
        kept = (scale == chosen).reshape(-1, *[1] * (w.ndim - 1))
        q = np.where(kept, rounded.q, quantize_weights(rounded.real(), bits, scale))
    flat = q.reshape(len(q), -1).astype(np.int64)
    folded = np.rint(b / (grid.scale * scale)).astype(np.int64) - grid.zero * flat.sum(axis=1)
    lo, hi = int_range(grid.dtype)
    worst = np.abs(flat).sum(axis=1) * max(abs(lo), abs(hi)) + np.abs(folded)
    return IntegerWeights(q, folded.astype(np.int32), scale, float((worst * grid.scale * scale).max()))

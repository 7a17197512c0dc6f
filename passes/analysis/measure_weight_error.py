"""measure-weight-error: what rounding does to each layer's weights at each width."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from qcompile.ir import WEIGHTED, Array, Graph
from qcompile.pm.base import ON_FLOAT, Levels, Pass, PassContext, PassResult, Report
from qcompile.pm.facts import WEIGHT_ERROR, WeightError
from qcompile.semantics.grids import quantize_weights, weight_scales


@dataclass(frozen=True)
class MeasureWeightError(Pass):
    """Note ‖Q_b(W) − W‖² of each layer for each weight width of the target: a factor of HAWQ-V2's Ω."""

    name: ClassVar[str] = "measure-weight-error"
    levels: ClassVar[Levels] = ON_FLOAT
    provides = (WEIGHT_ERROR,)

    def run(self, graph: Graph, ctx: PassContext) -> PassResult:
        layers = [node for node in graph.nodes if node.op in WEIGHTED]
        table = {}
        for done, node in enumerate(layers):
            ctx.progress(self.name, done, len(layers))
            w = graph.const(node, "w")
            table[node.name] = WeightError({b: squared_error(w, b) for b in ctx.target.weight_bits}, w.size)
        notes = graph.notes.with_table(WEIGHT_ERROR, table)
        return PassResult(graph.with_notes(notes), Report(facts={"layers": len(table)}))


def squared_error(w: Array, bits: int) -> float:
    """‖Q(W) − W‖² with the scales `integerize` uses; float64."""
    scales = weight_scales(w, bits)
    rounded = quantize_weights(w, bits, scales).astype(np.float64) * scales.reshape(-1, *[1] * (w.ndim - 1))
    return float(np.square(rounded - w.astype(np.float64)).sum())

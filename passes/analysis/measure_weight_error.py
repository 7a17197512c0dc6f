"""measure-weight-error: what rounding does to each layer's weights at each width."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from passes.analysis.candidate_weights import CandidateWeights
from qcompile.ir import WEIGHTED, Graph
from qcompile.pm.base import ON_FLOAT, Levels, Pass, PassContext, PassResult, Report
from qcompile.pm.facts import WEIGHT_ERROR, WeightError


@dataclass(frozen=True)
class MeasureWeightError(Pass):
    """Note ‖Q_b(W) − W‖² of each layer for each weight width of the target: a factor of HAWQ-V2's Ω.

    Q rounds as the candidates do where they are noted, else to nearest.
    """

    name: ClassVar[str] = "measure-weight-error"
    levels: ClassVar[Levels] = ON_FLOAT
    provides = (WEIGHT_ERROR,)

    def run(self, graph: Graph, ctx: PassContext) -> PassResult:
        layers = [node for node in graph.nodes if node.op in WEIGHTED]
        table = {}
        weights = CandidateWeights(graph)
        for done, node in enumerate(layers):
            ctx.progress(self.name, done, len(layers))
            w = graph.const(node, "w")
            squared = {bits: weights.error(node.name, bits) for bits in ctx.target.weight_bits}
            table[node.name] = WeightError(squared, w.size)
        notes = graph.notes.with_table(WEIGHT_ERROR, table)
        return PassResult(graph.with_notes(notes), Report(facts={"layers": len(table)}))

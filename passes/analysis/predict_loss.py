"""predict-loss: what each choice of bits of a layer will cost in accuracy, as far as that adds up over layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from passes.analysis.subjects import ACTIVATIONS, WEIGHTS
from passes.structure import Structure
from qcompile.ir import Graph
from qcompile.pm.base import ON_FLOAT, Levels, Pass, PassContext, PassResult, Report
from qcompile.pm.facts import LOSS, SENSITIVITY, LossTable, Sensitivity


@dataclass(frozen=True)
class PredictLoss(Pass):
    """Combine what an estimator found for weights and for activations into one table per layer.

    loss(w, a) = loss of the weights at w bits + loss of the input's grid group at a bits / layers that read it

    A grid group's layers are tied and share its loss equally, so that the sum over layers counts it once.  Fewer bits
    never predict less: noise in estimates and clipping searches is levelled by a running maximum.
    """

    name: ClassVar[str] = "predict-loss"
    levels: ClassVar[Levels] = ON_FLOAT
    requires = (SENSITIVITY,)
    provides = (LOSS,)

    def run(self, graph: Graph, ctx: PassContext) -> PassResult:
        notes, table = graph.notes, {}
        found = notes[SENSITIVITY]
        for group, layers in Structure(graph).tied().items():
            share = monotone(found[ACTIVATIONS + group].loss)
            for layer in layers:
                own = monotone(found[WEIGHTS + layer].loss)
                loss = {(w, a): own[w] + share[a] / len(layers) for w in own for a in share}
                errors = _errors(found[WEIGHTS + layer], found[ACTIVATIONS + group], len(layers))
                table[layer] = LossTable(loss, errors)
        methods = sorted({sensitivity.method for sensitivity in found.values()})
        facts = {"layers": len(table), "methods": methods}
        return PassResult(graph.with_notes(notes.with_table(LOSS, table)), Report(facts=facts))


def monotone(by_bits: Mapping[int, float]) -> dict[int, float]:
    """Non-negative, and never falling toward fewer bits."""
    level, found = 0.0, {}
    for bits in sorted(by_bits, reverse=True):
        level = max(level, by_bits[bits])
        found[bits] = level
    return found


def _errors(weights: Sensitivity, activations: Sensitivity, readers: int) -> dict[tuple[int, int], float]:
    """Standard errors of the choices, the two parts taken as independent; empty where one is not known."""
    own, share = weights.standard_error, activations.standard_error
    return {(w, a): (own[w] ** 2 + (share[a] / readers) ** 2) ** 0.5 for w in own for a in share}

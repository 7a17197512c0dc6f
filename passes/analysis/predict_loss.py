"""predict-loss: what each choice of bits will cost in accuracy, to second order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar

from passes.structure import Structure
from qcompile.ir import Graph
from qcompile.pm.base import ON_FLOAT, Levels, Pass, PassContext, PassResult, Report
from qcompile.pm.facts import (
    ACTIVATION_TRACE,
    LOSS,
    RANGES,
    WEIGHT_ERROR,
    WEIGHT_TRACE,
    LossTable,
    Range,
    Trace,
    WeightError,
)


@dataclass(frozen=True)
class PredictLoss(Pass):
    """Combine traces and rounding errors into a table of loss increases per layer and choice.

    loss(w, a) = ½ · mean trace of the weights · ‖Q_w(W) − W‖²                  (HAWQ-V2, equation of Ω)
               + ½ · mean trace of the input · elements · mean squared error at a bits

    The second term belongs to a grid group; its layers are tied and share it equally, so that the sum over
    layers counts it once.  Fewer bits never predict less: noise in clipping searches is levelled by a running
    maximum.
    """

    name: ClassVar[str] = "predict-loss"
    levels: ClassVar[Levels] = ON_FLOAT
    requires = (RANGES, WEIGHT_ERROR, WEIGHT_TRACE, ACTIVATION_TRACE)
    provides = (LOSS,)

    def run(self, graph: Graph, ctx: PassContext) -> PassResult:
        notes, table = graph.notes, {}
        for group, layers in Structure(graph).tied().items():
            share = activation_loss(notes[ACTIVATION_TRACE][group], notes[RANGES][group], ctx.target.act_bits)
            for layer in layers:
                own = weight_loss(notes[WEIGHT_TRACE][layer], notes[WEIGHT_ERROR][layer], ctx.target.weight_bits)
                loss = {(w, a): own[w] + share[a] / len(layers) for w in own for a in share}
                table[layer] = LossTable(loss)
        return PassResult(graph.with_notes(notes.with_table(LOSS, table)), Report(facts={"layers": len(table)}))


def weight_loss(trace: Trace, error: WeightError, widths: Iterable[int]) -> dict[int, float]:
    """Weight bits → predicted increase of the loss."""
    return _monotone({w: 0.5 * trace.mean * error.squared[w] for w in widths})


def activation_loss(trace: Trace, range_: Range, widths: Iterable[int]) -> dict[int, float]:
    """Activation bits → predicted increase of the loss, for all layers of the group together."""
    return _monotone({a: 0.5 * trace.mean * trace.numel * range_.error[a] for a in widths})


def _monotone(by_bits: Mapping[int, float]) -> dict[int, float]:
    """Non-negative, and never falling toward fewer bits."""
    level, found = 0.0, {}
    for bits in sorted(by_bits, reverse=True):
        level = max(level, by_bits[bits])
        found[bits] = level
    return found

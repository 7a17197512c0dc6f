"""estimate-trace-loss: the loss of rounding as average curvature times squared rounding error (HAWQ-V2)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from passes.analysis.subjects import ACTIVATIONS, WEIGHTS
from passes.structure import Structure
from qcompile.ir import Graph
from qcompile.pm.base import ON_FLOAT, Levels, Pass, PassContext, PassResult, Report
from qcompile.pm.facts import (
    ACTIVATION_TRACE,
    RANGES,
    SENSITIVITY,
    WEIGHT_ERROR,
    WEIGHT_TRACE,
    Range,
    Sensitivity,
    Trace,
    WeightError,
)


@dataclass(frozen=True)
class EstimateTraceLoss(Pass):
    """Multiply traces with rounding errors.

    weights:      ½ · mean trace of the weights · ‖Q_w(W) − W‖²                (HAWQ-V2, equation of Ω)
    activations:  ½ · mean trace of the input · elements · mean squared error at a bits
    """

    name: ClassVar[str] = "estimate-trace-loss"
    levels: ClassVar[Levels] = ON_FLOAT
    requires = (RANGES, WEIGHT_ERROR, WEIGHT_TRACE, ACTIVATION_TRACE)
    provides = (SENSITIVITY,)

    def run(self, graph: Graph, ctx: PassContext) -> PassResult:
        notes, table = graph.notes, {}
        structure = Structure(graph)
        for layer in structure.layers:
            table[WEIGHTS + layer] = weight_loss(
                notes[WEIGHT_TRACE][layer], notes[WEIGHT_ERROR][layer], ctx.target.weight_bits
            )
        for group in structure.tied():
            table[ACTIVATIONS + group] = activation_loss(
                notes[ACTIVATION_TRACE][group], notes[RANGES][group], ctx.target.act_bits
            )
        facts = {"subjects": len(table)}
        return PassResult(graph.with_notes(notes.with_table(SENSITIVITY, table)), Report(facts=facts))


def weight_loss(trace: Trace, error: WeightError, widths: Iterable[int]) -> Sensitivity:
    """Predicted loss of a layer's weights."""
    return _scaled(trace, {w: error.squared[w] for w in widths})


def activation_loss(trace: Trace, range_: Range, widths: Iterable[int]) -> Sensitivity:
    """Predicted loss of a group's values, for all layers that read it together."""
    return _scaled(trace, {a: trace.numel * range_.error[a] for a in widths})


def _scaled(trace: Trace, squared: dict[int, float]) -> Sensitivity:
    return Sensitivity(
        {bits: 0.5 * trace.mean * square for bits, square in squared.items()},
        {bits: 0.5 * trace.standard_error * square for bits, square in squared.items()},
        EstimateTraceLoss.name,
    )

"""measure-single-loss: round one thing at a time and see what that alone costs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from passes.analysis.subjects import choices_of, tabulate
from passes.analysis.summed import Samples
from passes.analysis.sweep import sweep
from passes.structure import Structure
from qcompile.ir import Graph
from qcompile.pm.base import ON_FLOAT, Levels, Pass, PassContext, PassResult, Report
from qcompile.pm.facts import RANGES, SENSITIVITY


@dataclass(frozen=True)
class MeasureSingleLoss(Pass):
    """Measure the loss of the float network with one layer's weights, or one grid group's values, rounded.

    Each subject at each width is run over the samples; the float network before it is run once for all (see
    `qcompile.exec.torch_variants`).  A network that is sure of its answers loses only on the few samples where it is
    not, so this needs many of them; `measure-output-gram` does with fewer.

    Attributes:
        samples: calibration samples, the first ones.
        batch: samples run at a time; what an interruption loses.
    """

    name: ClassVar[str] = "measure-single-loss"
    levels: ClassVar[Levels] = ON_FLOAT
    requires = (RANGES,)
    provides = (SENSITIVITY,)
    needs = ("calibration",)

    samples: int = 256
    batch: int = 16

    def run(self, graph: Graph, ctx: PassContext) -> PassResult:
        choices = choices_of(Structure(graph), ctx.target.weight_bits, ctx.target.act_bits)
        swept = sweep(graph, ctx, [[choice] for choice in choices], Samples(self.name, self.samples, self.batch))
        table = tabulate(choices, swept.loss, swept.loss_error, self.name)
        facts = {"samples": swept.samples, "choices": len(choices)}
        return PassResult(graph.with_notes(graph.notes.with_table(SENSITIVITY, table)), Report(facts=facts))

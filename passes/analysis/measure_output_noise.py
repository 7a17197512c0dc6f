"""measure-output-noise: signal to quantisation-noise ratio of the outputs, as noise power so that it adds up."""

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
class MeasureOutputNoise(Pass):
    """Round one thing at a time and note Σ(y − ŷ)² / Σy² of the outputs: 10^(−SQNR/10).

    MixDQ (section 4) sums the ratio in decibels over layers; powers of independent errors add up, decibels do not.  It
    needs no gradients and no notion of classes, and its unit is not that of the loss: only the order of plans counts.

    Attributes:
        samples: calibration samples, the first ones.
        batch: samples run at a time.
    """

    name: ClassVar[str] = "measure-output-noise"
    levels: ClassVar[Levels] = ON_FLOAT
    requires = (RANGES,)
    provides = (SENSITIVITY,)
    needs = ("calibration",)

    samples: int = 64
    batch: int = 16

    def run(self, graph: Graph, ctx: PassContext) -> PassResult:
        choices = choices_of(Structure(graph), ctx.target.weight_bits, ctx.target.act_bits)
        swept = sweep(graph, ctx, [[choice] for choice in choices], Samples(self.name, self.samples, self.batch))
        table = tabulate(choices, swept.noise, swept.noise_error, self.name)
        facts = {"samples": swept.samples, "choices": len(choices)}
        return PassResult(graph.with_notes(graph.notes.with_table(SENSITIVITY, table)), Report(facts=facts))

"""measure-output-gram: round one thing at a time and compare how the outputs change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from passes.analysis.between_widths import every_second, filled
from passes.analysis.effort import affordable_samples
from passes.analysis.subjects import Choice, choices_of, with_pairs
from passes.analysis.summed import Samples
from passes.analysis.sweep import Float, Swept, sweep
from passes.structure import Structure
from qcompile.ir import Graph
from qcompile.pm.base import ON_FLOAT, Levels, Pass, PassContext, PassResult, Report
from qcompile.pm.facts import CANDIDATES, INTERACTIONS, RANGES, SENSITIVITY

_MODEL_ERROR = 0.2
"""About the relative error of the quadratic loss of one choice, taken from networks where the measured one is exact."""


@dataclass(frozen=True)
class MeasureOutputGram(Pass):
    """The default estimator: measured changes d_i of the outputs, judged by the mean Hessian S of the loss in them.

    Where choice i alone changes the outputs by d_i, making i and j changes them by about d_i + d_j, and the loss rises
    to second order by ½ E (d_i + d_j)ᵀ S (d_i + d_j): ½ G_ii for i alone, and G_ij more where j is made too, with
    G_ij = E d_iᵀ S d_j.  One run per choice gives all pairs, without gradients.  Changes are real ones, through all
    nonlinearities behind the layer.  G is positive semi-definite.

    The same runs measure the loss of each choice.  A network that is sure of its answers loses only on the few samples
    where it is not, so single measured losses are noisy where ½ G_ii is not (see `MeanHessian`); where they are not
    noisy they know more.  So both are averaged, in logarithms, with weights by their errors: the measured loss's
    standard error against `_MODEL_ERROR`.  The terms between subjects are scaled along.

    Attributes:
        samples: calibration samples, the first ones.
        teramacs: most multiply-accumulates of all runs, in 10¹²; large networks are run on fewer samples.
        fine: samples below which it pays to measure every second width only (see `between_widths`) on more of them.
        strength: share of the terms between subjects that is noted: nonlinearities make changes of distant layers
            less alike than they are alone.
        diagonal: whether sensitivities that an earlier pass noted are replaced; where there are none they are noted.
        batch: samples run at a time; what an interruption loses.
    """

    name: ClassVar[str] = "measure-output-gram"
    levels: ClassVar[Levels] = ON_FLOAT
    requires = (RANGES,)
    provides = (SENSITIVITY, INTERACTIONS)
    needs = ("calibration",)

    samples: int = 128
    teramacs: float = 6.0
    fine: int = 32
    strength: float = 0.5
    diagonal: bool = False
    batch: int = 16

    def run(self, graph: Graph, ctx: PassContext) -> PassResult:
        choices = choices_of(Structure(graph), ctx.target.weight_bits, ctx.target.act_bits)
        measured = choices
        if self._affordable(graph, choices) < self.fine:
            measured = every_second(choices)
        samples = Samples(self.name, self._affordable(graph, measured), self.batch)
        swept = sweep(graph, ctx, [[choice] for choice in measured], samples, gram=True)
        loss, error = combined(swept)
        optimized = bool(graph.notes.get(CANDIDATES))
        every = filled(choices, measured, loss, error, optimized=optimized)
        quadratic = swept.quadratic[every.like]
        unit = np.sqrt(np.divide(every.loss, quadratic, out=np.zeros_like(quadratic), where=quadratic > 0))
        between = self.strength * swept.gram[np.ix_(every.like, every.like)] * unit[:, None] * unit[None, :]
        notes = with_pairs(graph.notes, choices, every.loss, every.error, between, self.name, diagonal=self.diagonal)
        facts = {"samples": swept.samples, "choices": len(choices), "measured": len(measured)}
        return PassResult(graph.with_notes(notes), Report(facts=facts))

    def _affordable(self, graph: Graph, choices: Sequence[Choice]) -> int:
        # A choice runs what lies behind it: half the network on average.
        return min(self.samples, affordable_samples(graph, 0.5 * len(choices), self.teramacs))


def combined(swept: Swept) -> tuple[Float, Float]:
    """Weighted geometric means of measured and quadratic losses, and about their standard errors.

    Quadratic losses are first multiplied by one number, the median over choices of measured over quadratic ones.
    """
    both = (swept.loss > 0) & (swept.quadratic > 0)
    if not both.any():
        return swept.loss, swept.loss_error
    ratio = np.where(both, swept.loss, 1.0) / np.where(both, swept.quadratic, 1.0)
    scale = float(np.median(ratio[both]))
    noise = np.where(both, np.minimum(swept.loss_error / np.where(both, swept.loss, 1.0), 1.0), np.inf)
    own = np.where(np.isfinite(swept.quadratic_error), swept.quadratic_error, 0.0)
    model = np.hypot(_MODEL_ERROR, own / np.where(both, swept.quadratic, 1.0))
    weight = np.where(both, model**2 / (model**2 + np.square(noise)), 0.0)
    loss = np.where(both, scale * swept.quadratic * (ratio / scale) ** weight, scale * swept.quadratic)
    relative = np.where(both, np.sqrt(weight) * np.where(both, noise, 0.0), model)
    return loss, loss * np.where(relative > 0, relative, model)

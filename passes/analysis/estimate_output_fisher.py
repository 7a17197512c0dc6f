"""estimate-output-fisher: squared gradient times squared error of every layer's output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from passes.analysis.perturbations import Perturbations
from passes.analysis.samples import LabelledBatch
from passes.analysis.subjects import Choice, choices_of, tabulate
from passes.analysis.summed import Samples, Step, batch_seed, mean_and_error
from passes.analysis.sweep import unit_losses
from passes.structure import Structure
from qcompile.exec.torch_taps import Taps, inner, mean_squares
from qcompile.ir import Array, Graph
from qcompile.pm.base import ON_FLOAT, Levels, Pass, PassContext, PassResult, Report
from qcompile.pm.facts import RANGES, SENSITIVITY


@dataclass(frozen=True)
class EstimateOutputFisher(Pass):
    """½ E Σ_k g_k² (Y_k − Y_k^Q)² over the outputs Y of the layers a choice acts on, as AutoQuantize scores.

    It takes the errors of output elements as uncorrelated: the diagonal of the Fisher matrix in the layer's output.
    Gradients are those of the true Fisher matrix, without labels.

    Attributes:
        samples: calibration samples, the first ones.
        draws: gradients per sample.
        batch: samples run at a time.
    """

    name: ClassVar[str] = "estimate-output-fisher"
    levels: ClassVar[Levels] = ON_FLOAT
    requires = (RANGES,)
    provides = (SENSITIVITY,)
    needs = ("calibration",)

    samples: int = 128
    draws: int = 4
    batch: int = 8

    def run(self, graph: Graph, ctx: PassContext) -> PassResult:
        choices = choices_of(Structure(graph), ctx.target.weight_bits, ctx.target.act_bits)
        samples = Samples(self.name, self.samples, self.batch)
        named = [(choice.subject, choice.bits) for choice in choices]
        sums = samples.sum(
            graph, ctx, [self.name, self.draws, self.batch, named], lambda: self._step(graph, ctx, choices)
        )
        table = tabulate(choices, *mean_and_error(sums, "loss"), self.name)
        facts = {"samples": int(sums["samples"]), "draws": self.draws}
        return PassResult(graph.with_notes(graph.notes.with_table(SENSITIVITY, table)), Report(facts=facts))

    def _step(self, graph: Graph, ctx: PassContext, choices: Sequence[Choice]) -> Step:
        perturbations = Perturbations(graph)
        taps = Taps(perturbations.runner, perturbations.places, unit_losses(graph, ctx))

        def step(number: int, batch: LabelledBatch) -> dict[str, Array]:
            taps.restart(batch_seed(ctx, self.name, number))
            values, gradients = taps.gradients(batch.inputs, self.draws)
            squares = mean_squares(gradients)
            each = np.zeros((len(choices), len(batch)))
            for i, choice in enumerate(choices):
                for layer, change in perturbations.outputs(choice, values):
                    each[i] += 0.5 * inner(squares[layer], change.square()).numpy()
            return {"loss": each.sum(axis=1), "loss²": np.square(each).sum(axis=1)}

        return step

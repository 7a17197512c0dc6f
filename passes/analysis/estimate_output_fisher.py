"""estimate-output-fisher: squared gradient times squared error of every layer's output."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from passes.analysis.samples import LabelledBatch
from passes.analysis.subjects import tabulate
from passes.analysis.summed import Samples, mean_and_error
from passes.analysis.tapped import Tapped, sum_tapped
from qcompile.exec.torch_taps import inner, mean_squares
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
        samples = Samples(self.name, self.samples, self.batch)
        choices, sums = sum_tapped(graph, ctx, samples, [self.draws, self.batch], self._step)
        table = tabulate(choices, *mean_and_error(sums, "loss"), self.name)
        facts = {"samples": int(sums["samples"]), "draws": self.draws}
        return PassResult(graph.with_notes(graph.notes.with_table(SENSITIVITY, table)), Report(facts=facts))

    def _step(self, tapped: Tapped, batch: LabelledBatch) -> dict[str, Array]:
        values, gradients = tapped.taps.gradients(batch.inputs, self.draws)
        squares = mean_squares(gradients)
        each = np.zeros((len(tapped.choices), len(batch)))
        for i, choice in enumerate(tapped.choices):
            for layer, change in tapped.perturbations.outputs(choice, values):
                each[i] += 0.5 * inner(squares[layer], change.square()).numpy()
        return {"loss": each.sum(axis=1), "loss²": np.square(each).sum(axis=1)}

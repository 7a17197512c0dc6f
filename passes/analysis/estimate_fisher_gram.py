"""estimate-fisher-gram: second-order terms of all pairs of choices from first derivatives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from passes.analysis.samples import LabelledBatch
from passes.analysis.subjects import with_pairs
from passes.analysis.summed import Samples, mean_and_error
from passes.analysis.tapped import Tapped, sum_tapped
from qcompile.exec.torch_taps import inner
from qcompile.ir import Array, Graph
from qcompile.pm.base import ON_FLOAT, Levels, Pass, PassContext, PassResult, Report
from qcompile.pm.facts import INTERACTIONS, RANGES, SENSITIVITY


@dataclass(frozen=True)
class EstimateFisherGram(Pass):
    """Ω = AᵀA / m, A's rows the inner products of one sample's gradients with the changes rounding makes.

    The gradients g are those of the true Fisher matrix F = E g gᵀ, drawn without labels (see
    `qcompile.exec.torch_taps`), so δᵢᵀ F δⱼ = E (g·δᵢ)(g·δⱼ): the loss rises by ½ Ω_ii for choice i alone and by Ω_ij
    more where j is made too.  Ω is positive semi-definite by construction.  The rows of A need no gradients of weights:
    a layer's gradient times Q(W) − W is the gradient of its output times the layer of Q(W) − W.

    Attributes:
        samples: calibration samples, the first ones.
        draws: gradients per sample; each costs a backward pass.
        diagonal: whether ½ Ω_ii replaces sensitivities that an earlier pass noted; where none did it always is noted.
        batch: samples run at a time.
    """

    name: ClassVar[str] = "estimate-fisher-gram"
    levels: ClassVar[Levels] = ON_FLOAT
    requires = (RANGES,)
    provides = (SENSITIVITY, INTERACTIONS)
    needs = ("calibration",)

    samples: int = 128
    draws: int = 4
    diagonal: bool = False
    batch: int = 8

    def run(self, graph: Graph, ctx: PassContext) -> PassResult:
        samples = Samples(self.name, self.samples, self.batch)
        choices, sums = sum_tapped(graph, ctx, samples, [self.draws, self.batch], self._step)
        loss, error = mean_and_error(sums, "loss")
        gram = sums["gram"] / int(sums["samples"])
        notes = with_pairs(graph.notes, choices, loss, error, gram, self.name, diagonal=self.diagonal)
        facts = {"samples": int(sums["samples"]), "draws": self.draws, "choices": len(choices)}
        return PassResult(graph.with_notes(notes), Report(facts=facts))

    def _step(self, tapped: Tapped, batch: LabelledBatch) -> dict[str, Array]:
        values, gradients = tapped.taps.gradients(batch.inputs, self.draws)
        rows = np.zeros((self.draws, len(batch), len(tapped.choices)))
        for i, choice in enumerate(tapped.choices):
            for place, change in tapped.perturbations.of(choice, values):
                for d, gradient in enumerate(gradients):
                    rows[d, :, i] += inner(gradient[place], change).numpy()
        flat = rows.reshape(-1, len(tapped.choices))
        each = 0.5 * np.square(rows).mean(axis=0)
        return {"gram": flat.T @ flat / self.draws, "loss": each.sum(axis=0), "loss²": np.square(each).sum(axis=0)}

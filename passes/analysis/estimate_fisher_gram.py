"""estimate-fisher-gram: second-order terms of all pairs of choices from first derivatives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from passes.analysis.perturbations import Perturbations
from passes.analysis.samples import LabelledBatch
from passes.analysis.subjects import Choice, choices_of, interactions, tabulate
from passes.analysis.summed import Samples, Step, batch_seed, mean_and_error
from passes.analysis.sweep import unit_losses
from passes.structure import Structure
from qcompile.exec.torch_taps import Taps, inner
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
        choices = choices_of(Structure(graph), ctx.target.weight_bits, ctx.target.act_bits)
        samples = Samples(self.name, self.samples, self.batch)
        named = [(choice.subject, choice.bits) for choice in choices]
        sums = samples.sum(
            graph, ctx, [self.name, self.draws, self.batch, named], lambda: self._step(graph, ctx, choices)
        )
        notes = graph.notes
        if self.diagonal or not notes.get(SENSITIVITY):
            notes = notes.with_table(SENSITIVITY, tabulate(choices, *mean_and_error(sums, "loss"), self.name))
        gram = sums["gram"] / int(sums["samples"])
        notes = notes.with_table(INTERACTIONS, {"": interactions(choices, gram, self.name)})
        facts = {"samples": int(sums["samples"]), "draws": self.draws, "choices": len(choices)}
        return PassResult(graph.with_notes(notes), Report(facts=facts))

    def _step(self, graph: Graph, ctx: PassContext, choices: Sequence[Choice]) -> Step:
        perturbations = Perturbations(graph)
        taps = Taps(perturbations.runner, perturbations.places, unit_losses(graph, ctx))

        def step(number: int, batch: LabelledBatch) -> dict[str, Array]:
            taps.restart(batch_seed(ctx, self.name, number))
            values, gradients = taps.gradients(batch.inputs, self.draws)
            rows = np.zeros((self.draws, len(batch), len(choices)))
            for i, choice in enumerate(choices):
                for place, change in perturbations.of(choice, values):
                    for d, gradient in enumerate(gradients):
                        rows[d, :, i] += inner(gradient[place], change).numpy()
            flat = rows.reshape(-1, len(choices))
            each = 0.5 * np.square(rows).mean(axis=0)
            return {"gram": flat.T @ flat / self.draws, "loss": each.sum(axis=0), "loss²": np.square(each).sum(axis=0)}

        return step

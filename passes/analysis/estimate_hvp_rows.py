"""estimate-hvp-rows: second-order terms of all pairs of choices from products with the Hessian."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from passes.analysis.perturbations import Perturbations
from passes.analysis.samples import LabelledBatch
from passes.analysis.subjects import Choice, choices_of, interactions, tabulate
from passes.analysis.summed import Samples, Step, mean_and_error
from passes.analysis.sweep import unit_losses
from passes.structure import Structure
from qcompile.exec.torch_taps import Taps, inner
from qcompile.ir import Array, Graph
from qcompile.pm.base import ON_FLOAT, Levels, Pass, PassContext, PassResult, Report
from qcompile.pm.facts import INTERACTIONS, RANGES, SENSITIVITY


@dataclass(frozen=True)
class EstimateHvpRows(Pass):
    """Ω_ij = δᵢᵀ H δⱼ: one Hessian-vector product for each choice gives a full row, without sampling noise.

    H is the Hessian of the label-free loss at the float network, where it equals the Fisher matrix that
    `estimate-fisher-gram` samples; this is its exact and slower form, n·k products by double backward.

    Attributes:
        samples: calibration samples, the first ones.
        diagonal: whether ½ Ω_ii replaces sensitivities that an earlier pass noted; where none did it always is noted.
        batch: samples run at a time; memory holds what every choice changes on that many.
    """

    name: ClassVar[str] = "estimate-hvp-rows"
    levels: ClassVar[Levels] = ON_FLOAT
    requires = (RANGES,)
    provides = (SENSITIVITY, INTERACTIONS)
    needs = ("calibration",)

    samples: int = 64
    diagonal: bool = False
    batch: int = 4

    def run(self, graph: Graph, ctx: PassContext) -> PassResult:
        choices = choices_of(Structure(graph), ctx.target.weight_bits, ctx.target.act_bits)
        samples = Samples(self.name, self.samples, self.batch)
        named = [(choice.subject, choice.bits) for choice in choices]
        sums = samples.sum(graph, ctx, [self.name, self.batch, named], lambda: self._step(graph, ctx, choices))
        notes = graph.notes
        if self.diagonal or not notes.get(SENSITIVITY):
            notes = notes.with_table(SENSITIVITY, tabulate(choices, *mean_and_error(sums, "loss"), self.name))
        rows = sums["rows"] / int(sums["samples"])
        notes = notes.with_table(INTERACTIONS, {"": interactions(choices, rows, self.name)})
        facts = {"samples": int(sums["samples"]), "choices": len(choices)}
        return PassResult(graph.with_notes(notes), Report(facts=facts))

    def _step(self, graph: Graph, ctx: PassContext, choices: Sequence[Choice]) -> Step:
        perturbations = Perturbations(graph)
        taps = Taps(perturbations.runner, perturbations.places, unit_losses(graph, ctx))

        def step(number: int, batch: LabelledBatch) -> dict[str, Array]:
            values = taps.values(batch.inputs)
            acts = [list(perturbations.of(choice, values)) for choice in choices]
            parts = [(i, place, change) for i, act in enumerate(acts) for place, change in act]
            rows = np.zeros((len(choices), len(choices)))
            each = np.zeros((len(choices), len(batch)))
            products = taps.hessian(batch.inputs, [(place, change) for _, place, change in parts])
            for (i, _, _), product in zip(parts, products, strict=True):
                for j, act in enumerate(acts):
                    for place, change in act:
                        found = inner(product[place], change).numpy()
                        rows[i, j] += found.sum()
                        if i == j:
                            each[i] += 0.5 * found
            return {"rows": rows, "loss": each.sum(axis=1), "loss²": np.square(each).sum(axis=1)}

        return step

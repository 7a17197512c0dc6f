"""estimate-hvp-rows: second-order terms of all pairs of choices from products with the Hessian."""

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
        samples = Samples(self.name, self.samples, self.batch)
        choices, sums = sum_tapped(graph, ctx, samples, [self.batch], self._step)
        loss, error = mean_and_error(sums, "loss")
        rows = sums["rows"] / int(sums["samples"])
        notes = with_pairs(graph.notes, choices, loss, error, rows, self.name, diagonal=self.diagonal)
        facts = {"samples": int(sums["samples"]), "choices": len(choices)}
        return PassResult(graph.with_notes(notes), Report(facts=facts))

    def _step(self, tapped: Tapped, batch: LabelledBatch) -> dict[str, Array]:
        values = tapped.taps.values(batch.inputs)
        acts = [list(tapped.perturbations.of(choice, values)) for choice in tapped.choices]
        parts = [(i, place, change) for i, act in enumerate(acts) for place, change in act]
        rows = np.zeros((len(acts), len(acts)))
        each = np.zeros((len(acts), len(batch)))
        products = tapped.taps.hessian(batch.inputs, [(place, change) for _, place, change in parts])
        for (i, _, _), product in zip(parts, products, strict=True):
            for j, act in enumerate(acts):
                for place, change in act:
                    found = inner(product[place], change).numpy()
                    rows[i, j] += found.sum()
                    if i == j:
                        each[i] += 0.5 * found
        return {"rows": rows, "loss": each.sum(axis=1), "loss²": np.square(each).sum(axis=1)}

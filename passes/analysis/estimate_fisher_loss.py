"""estimate-fisher-loss: the loss of rounding from the diagonal of the Fisher matrix, weight by weight."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from passes.analysis.samples import LabelledBatch
from passes.analysis.subjects import tabulate
from passes.analysis.summed import Samples, mean_and_error
from passes.analysis.tapped import Tapped, sum_tapped
from qcompile.errors import UsageError
from qcompile.exec.tensors import Tensor
from qcompile.exec.torch_taps import inner, weight_gradients
from qcompile.ir import Array, Graph
from qcompile.pm.base import ON_FLOAT, Levels, Pass, PassContext, PassResult, Report
from qcompile.pm.facts import RANGES, SENSITIVITY

TRUE, EMPIRICAL = "true", "empirical"


@dataclass(frozen=True)
class EstimateFisherLoss(Pass):
    """½ Σ_k F_kk δ_k², F_kk the mean squared derivative of a sample's loss in one weight (or one value layers read).

    With kind=true the derivatives are those of the true Fisher matrix, drawn without labels; with kind=empirical they
    are of the cross-entropy with the labels, which is what most implementations call Fisher, and which vanishes where
    the network fits its samples.  The diagonal leaves out that errors of neighbouring weights act together.

    Attributes:
        kind: "true" or "empirical".
        samples: calibration samples, the first ones.
        draws: gradients per sample (kind=true).
    """

    name: ClassVar[str] = "estimate-fisher-loss"
    levels: ClassVar[Levels] = ON_FLOAT
    requires = (RANGES,)
    provides = (SENSITIVITY,)
    needs = ("calibration",)

    kind: str = TRUE
    samples: int = 64
    draws: int = 2

    def run(self, graph: Graph, ctx: PassContext) -> PassResult:
        """Raises UsageError for an unknown kind, or an empirical one without labels."""
        if self.kind not in (TRUE, EMPIRICAL):
            raise UsageError(f"unknown kind {self.kind!r}", hint=f"{TRUE} or {EMPIRICAL}")
        if self.kind == EMPIRICAL and not ctx.labels:
            raise UsageError("kind=empirical needs calibration data with labels", hint=f"kind={TRUE} needs none")
        # Squares of single samples' gradients: batches of one.
        samples = Samples(self.name, self.samples, 1, labelled=self.kind == EMPIRICAL)
        choices, sums = sum_tapped(graph, ctx, samples, [self.kind, self.draws], self._step)
        table = tabulate(choices, *mean_and_error(sums, "loss"), self.name)
        facts = {"samples": int(sums["samples"]), "kind": self.kind}
        return PassResult(graph.with_notes(graph.notes.with_table(SENSITIVITY, table)), Report(facts=facts))

    def _step(self, tapped: Tapped, batch: LabelledBatch) -> dict[str, Array]:
        if batch.labels is None:
            values, gradients = tapped.taps.gradients(batch.inputs, self.draws)
        else:
            values, one = tapped.taps.label_gradients(batch.inputs, batch.labels)
            gradients = [one]
        found = np.zeros(len(tapped.choices))
        for gradient in gradients:
            found += self._losses(tapped, values, gradient) / len(gradients)
        return {"loss": found, "loss²": np.square(found)}

    @staticmethod
    def _losses(tapped: Tapped, values: Mapping[str, Tensor], gradient: Mapping[str, Tensor]) -> Array:
        squares: dict[str, dict[str, Tensor]] = {}
        perturbations = tapped.perturbations
        found = np.zeros(len(tapped.choices))
        for i, choice in enumerate(tapped.choices):
            if not choice.of_weights:
                for place, change in perturbations.of(choice, values):
                    found[i] += 0.5 * float(inner(gradient[place].square(), change.square()))
                continue
            if choice.name not in squares:
                source = perturbations.rounder.graph.by_name[choice.name].inputs[0]
                own = weight_gradients(perturbations.runner, choice.name, values[source], gradient[choice.name])
                squares[choice.name] = {role: g.square() for role, g in own.items()}
            for role, change in perturbations.constants(choice).items():
                found[i] += 0.5 * float((squares[choice.name][role] * change.square()).sum())
        return found

"""estimate-fisher-loss: the loss of rounding from the diagonal of the Fisher matrix, weight by weight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from passes.analysis.perturbations import Perturbations
from passes.analysis.samples import LabelledBatch
from passes.analysis.subjects import Choice, choices_of, tabulate
from passes.analysis.summed import Samples, Step, batch_seed, mean_and_error
from passes.analysis.sweep import unit_losses
from passes.structure import Structure
from qcompile.errors import UsageError
from qcompile.exec.tensors import Tensor
from qcompile.exec.torch_taps import Taps, inner, weight_gradients
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
        choices = choices_of(Structure(graph), ctx.target.weight_bits, ctx.target.act_bits)
        # Squares of single samples' gradients: batches of one.
        samples = Samples(self.name, self.samples, 1, labelled=self.kind == EMPIRICAL)
        named = [(choice.subject, choice.bits) for choice in choices]
        sums = samples.sum(
            graph, ctx, [self.name, self.kind, self.draws, named], lambda: self._step(graph, ctx, choices)
        )
        table = tabulate(choices, *mean_and_error(sums, "loss"), self.name)
        facts = {"samples": int(sums["samples"]), "kind": self.kind}
        return PassResult(graph.with_notes(graph.notes.with_table(SENSITIVITY, table)), Report(facts=facts))

    def _step(self, graph: Graph, ctx: PassContext, choices: Sequence[Choice]) -> Step:
        perturbations = Perturbations(graph)
        taps = Taps(perturbations.runner, perturbations.places, unit_losses(graph, ctx))

        def step(number: int, batch: LabelledBatch) -> dict[str, Array]:
            taps.restart(batch_seed(ctx, self.name, number))
            if batch.labels is None:
                values, gradients = taps.gradients(batch.inputs, self.draws)
            else:
                values, one = taps.label_gradients(batch.inputs, batch.labels)
                gradients = [one]
            found = np.zeros(len(choices))
            for gradient in gradients:
                found += self._losses(perturbations, choices, values, gradient) / len(gradients)
            return {"loss": found, "loss²": np.square(found)}

        return step

    @staticmethod
    def _losses(
        perturbations: Perturbations,
        choices: Sequence[Choice],
        values: Mapping[str, Tensor],
        gradient: Mapping[str, Tensor],
    ) -> Array:
        squares: dict[str, dict[str, Tensor]] = {}
        found = np.zeros(len(choices))
        for i, choice in enumerate(choices):
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

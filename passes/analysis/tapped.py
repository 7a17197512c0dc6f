"""What estimators by derivatives share: every choice's change, and derivatives where it acts, batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from passes.analysis.perturbations import Perturbations
from passes.analysis.samples import LabelledBatch
from passes.analysis.subjects import Choice, choices_of
from passes.analysis.summed import Samples, Step, batch_seed
from passes.analysis.sweep import unit_losses
from passes.structure import Structure
from qcompile.exec.torch_taps import Taps
from qcompile.ir import Array, Graph
from qcompile.pm.base import PassContext


@dataclass(frozen=True, slots=True)
class Tapped:
    """Attributes:
    choices: all that a target offers.
    perturbations: the changes they make.
    taps: derivatives in the values that change; its random numbers start anew with every batch.
    """

    choices: Sequence[Choice]
    perturbations: Perturbations
    taps: Taps


def sum_tapped(
    graph: Graph,
    ctx: PassContext,
    samples: Samples,
    options: Sequence[object],
    step: Callable[[Tapped, LabelledBatch], dict[str, Array]],
) -> tuple[list[Choice], dict[str, Array]]:
    """All choices, and the sums over batches of what a step finds in one (see `Samples.sum`).

    Args:
        options: all the sums depend on beside the choices, the network, its rounding and the samples.
        step: to the arrays a batch adds, by name.
    """
    choices = choices_of(Structure(graph), ctx.target.weight_bits, ctx.target.act_bits)

    def prepare() -> Step:
        perturbations = Perturbations(graph)
        taps = Taps(perturbations.runner, perturbations.places, unit_losses(graph, ctx))
        tapped = Tapped(choices, perturbations, taps)

        def found(number: int, batch: LabelledBatch) -> dict[str, Array]:
            taps.restart(batch_seed(ctx, samples.task, number))
            return step(tapped, batch)

        return found

    named = [(choice.subject, choice.bits) for choice in choices]
    return choices, samples.sum(graph, ctx, [samples.task, *options, named], prepare)

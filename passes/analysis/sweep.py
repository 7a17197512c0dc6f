"""Sets of choices run one by one through the float network: what each does to the loss and to the outputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from passes.analysis.samples import LabelledBatch, first_samples
from passes.analysis.subjects import Choice, Rounder
from passes.analysis.summed import REFERENCE_SAMPLES, Samples, Step, mean_and_error
from qcompile.errors import PassContractError
from qcompile.exec.tensors import Tensor, inference
from qcompile.exec.torch_effects import MeanHessian, effects_of
from qcompile.exec.torch_exec import TorchGraph, parts_of, samples_together
from qcompile.exec.torch_loss import VALUES, OutputLoss, output_losses, with_variances
from qcompile.exec.torch_variants import VariantRunner
from qcompile.ir import Array, Graph
from qcompile.pm.base import PassContext

Float = NDArray[np.float64]

_ROWS = 128
"""Samples times sets of choices run at a time: enough to keep one core busy, little enough to stay in its caches."""


@dataclass(frozen=True, slots=True, eq=False)
class Swept:
    """Of V sets of choices, means over samples.

    Attributes:
        samples: how many.
        loss, noise: (V,), see `Effects`.
        quadratic: ½ of the squared change, (V,).
        loss_error, noise_error, quadratic_error: their standard errors.
        gram: mean product of changes, (V, V); (0, 0) where it was not asked for.
    """

    samples: int
    loss: Float
    loss_error: Float
    noise: Float
    noise_error: Float
    quadratic: Float
    quadratic_error: Float
    gram: Float


def sweep(
    graph: Graph, ctx: PassContext, sets: Sequence[Sequence[Choice]], samples: Samples, *, gram: bool = False
) -> Swept:
    """Run every set of choices alone over the samples."""
    samples = replace(samples, batch=min(samples.batch, samples_together(graph)))
    named = [[(choice.subject, choice.bits) for choice in choices] for choices in sets]

    def prepare() -> Step:
        rounder = Rounder(graph)
        runner = VariantRunner(rounder.graph, [rounder.variant(choices) for choices in sets], _ROWS)
        hessian = MeanHessian(unit_losses(graph, ctx), reference_outputs(graph, ctx))
        return lambda number, batch: _effects(runner, hessian, batch, gram)

    sums = samples.sum(graph, ctx, ["sweep", _ROWS, samples.batch, gram, named], prepare)
    n = int(sums["samples"])
    loss, noise, quadratic = (mean_and_error(sums, name) for name in ("loss", "noise", "quadratic"))
    return Swept(n, *loss, *noise, *quadratic, sums["gram"] / n)


def unit_losses(graph: Graph, ctx: PassContext) -> Mapping[str, OutputLoss]:
    """The loss of each output, in units of its variance over the samples where it holds values."""
    losses = output_losses(graph)
    if all(loss.kind != VALUES for loss in losses.values()):
        return losses
    return with_variances(losses, reference_outputs(graph, ctx))


def reference_outputs(graph: Graph, ctx: PassContext) -> Iterator[Mapping[str, Tensor]]:
    """Float outputs of the first samples, in batches."""
    if ctx.calibration is None:
        raise PassContractError("an analysis that needs calibration samples got none")
    runner = TorchGraph(graph)
    for batch in first_samples(graph, ctx.calibration, REFERENCE_SAMPLES, 32):
        for part in parts_of(graph, batch.inputs):
            with inference():
                outputs = runner.run(part)
            yield outputs


def _effects(runner: VariantRunner, hessian: MeanHessian, batch: LabelledBatch, gram: bool) -> dict[str, Array]:
    size = len(runner.variants)
    names = ("loss", "noise", "quadratic")
    found: dict[str, Array] = {f"{name}{power}": np.zeros(size) for name in names for power in ("", "²")}
    found["gram"] = np.zeros((0, 0))
    changes: list[Float] = [np.zeros(0)] * size
    runs = runner.run(batch.inputs)
    _, reference = next(runs)
    for numbers, outputs in runs:
        effects = effects_of(hessian, outputs, reference)
        rows = list(numbers)
        halves = 0.5 * np.square(effects.change).sum(axis=2)
        for name, each in zip(names, (effects.loss, effects.noise, halves), strict=True):
            found[name][rows] = each.sum(axis=1)
            found[f"{name}²"][rows] = np.square(each).sum(axis=1)
        if gram:
            for row, change in zip(rows, effects.change, strict=True):
                changes[row] = change.reshape(-1)
    if gram:
        stacked = np.stack(changes)
        found["gram"] = stacked @ stacked.T
    return found

"""estimate-hessian-trace: how much the loss curves in each layer's weights and in what the layers read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from passes.analysis.layer_inputs import separate_layer_inputs
from passes.analysis.samples import LabelledBatch, first_samples
from passes.analysis.summed import batch_seed
from passes.structure import Structure
from qcompile.errors import PassContractError, UsageError
from qcompile.exec.torch_exec import TorchGraph
from qcompile.exec.torch_hvp import BlockSums, HessianProbe
from qcompile.exec.torch_loss import VALUES, OutputLoss, output_losses, with_variances
from qcompile.ir import Array, Graph
from qcompile.pm.base import ON_FLOAT, Levels, Pass, PassContext, PassResult, Report
from qcompile.pm.facts import ACTIVATION_TRACE, WEIGHT_TRACE, Trace
from qcompile.pm.work import digest

GAUSS_NEWTON, HVP = "gauss-newton", "hvp"
_LEAST_PROBES = 3
"""Before a standard error means anything."""


@dataclass(frozen=True)
class EstimateHessianTrace(Pass):
    """Hutchinson estimates of the average Hessian trace, for all layers and all layer inputs at once.

    By default the loss is the divergence from the float network's own outputs, so no labels are needed: its
    gradient vanishes at the trained weights and its Hessian there is the Gauss-Newton matrix JᵀSJ, S the
    Hessian of the loss in the outputs.  With S = RRᵀ and random signs s, E‖JᵀRs‖² = Tr(JᵀSJ): one backward
    pass per probe, unbiased and never negative.  HAWQ-V2 (section 3) and PyHessian use products with the
    Hessian of the cross-entropy instead, which `method=hvp` offers.

    A probe is one pass over the samples; finished ones are kept.  Estimation stops when the standard error over
    probes is below `tolerance` times the mean for every layer and input (the change of the running mean, which
    other implementations test, shrinks like 1/k whatever the error), or after `probes`.

    Attributes:
        method: "gauss-newton" or "hvp".
        probes: at most so many passes over the samples.
        samples: how many calibration samples are used, the first ones.
        tolerance: relative standard error that is good enough.
        use_labels: "auto" (with hvp, where the data has labels), "yes" or "no".
        batch: samples per backward pass; bounds the memory.
    """

    name: ClassVar[str] = "estimate-hessian-trace"
    levels: ClassVar[Levels] = ON_FLOAT
    provides = (WEIGHT_TRACE, ACTIVATION_TRACE)
    needs = ("calibration",)

    method: str = GAUSS_NEWTON
    probes: int = 8
    samples: int = 64
    tolerance: float = 0.2
    use_labels: str = "auto"
    batch: int = 8

    def run(self, graph: Graph, ctx: PassContext) -> PassResult:
        labelled = self._labelled(ctx)
        if ctx.calibration is None:
            raise PassContractError("estimate-hessian-trace needs calibration samples")
        structure = Structure(graph)
        view = separate_layer_inputs(graph, structure)
        runner = TorchGraph(view.graph)
        batches = list(first_samples(graph, ctx.calibration, self.samples, self.batch, labelled))
        losses = self._losses(graph, runner, batches)
        weights = {layer: graph.const(graph.by_name[layer], "w") for layer in structure.layers}
        probe = HessianProbe(runner, weights, tuple(view.read_as.values()), losses, seed=0)
        blocks = _Blocks(structure, view.read_as)
        count = sum(map(len, batches))
        depends = [self.name, self.method, labelled, graph.content_hash, ctx.seed, [b.digest for b in batches]]
        for done in range(self.probes):
            key = digest(*depends, done)
            held = None if ctx.work is None else ctx.work.get(key)
            if held is not None:
                blocks.restore(held)
            else:
                ctx.progress(self.name, done, self.probes)
                # Each probe draws from a seed of its own, so that a resumed run draws what an unbroken one does.
                probe.restart(batch_seed(ctx, self.name, done))
                for batch in batches:
                    blocks.add(self._draw(probe, batch))
                if ctx.work is not None:
                    ctx.work.put(key, blocks.sums())
            blocks.end_of_probe(count)
            if done + 1 >= _LEAST_PROBES and blocks.worst() < self.tolerance:
                break
        weight_traces = {layer: _trace(blocks.weights[layer], weights[layer].size, count) for layer in structure.layers}
        sizes = {group: _numel(graph, structure, group) for group in structure.tied()}
        activation_traces = {g: _trace(blocks.groups[g], sizes[g], count) for g in sizes}
        notes = graph.notes.with_table(WEIGHT_TRACE, weight_traces)
        notes = notes.with_table(ACTIVATION_TRACE, activation_traces)
        facts = {
            "probes": done + 1,
            "samples": count,
            "worst_relative_error": blocks.worst(),
            "method": self.method,
        }
        return PassResult(graph.with_notes(notes), Report(facts=facts))

    def _labelled(self, ctx: PassContext) -> bool:
        if self.method not in (GAUSS_NEWTON, HVP):
            raise UsageError(f"unknown method {self.method!r}", hint=f"{GAUSS_NEWTON} or {HVP}")
        if self.use_labels not in ("auto", "yes", "no"):
            raise UsageError(f"use_labels is {self.use_labels!r}", hint="one of auto, yes, no")
        if min(self.probes, self.samples, self.batch) < 1:
            raise UsageError("probes, samples and batch must be at least 1")
        if self.use_labels == "yes" and (not ctx.labels or self.method != HVP):
            raise UsageError("use_labels=yes needs calibration data with labels, and method=hvp")
        return self.method == HVP and ctx.labels and self.use_labels != "no"

    @staticmethod
    def _losses(graph: Graph, runner: TorchGraph, batches: list[LabelledBatch]) -> dict[str, OutputLoss]:
        losses = output_losses(graph)
        if all(loss.kind != VALUES for loss in losses.values()):
            return losses
        return with_variances(losses, (runner.run(batch.inputs) for batch in batches))

    def _draw(self, probe: HessianProbe, batch: LabelledBatch) -> BlockSums:
        if self.method == GAUSS_NEWTON:
            return probe.gauss_newton(batch.inputs)
        return probe.hessian(batch.inputs, batch.labels)


@dataclass
class _Blocks:
    """Per-probe estimates by layer and by grid group."""

    structure: Structure
    read_as: Mapping[str, str]
    weights: dict[str, list[float]] = field(default_factory=dict)
    groups: dict[str, list[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.group_of = {name: self.structure.group_of[value] for value, name in self.read_as.items()}
        self._start()

    def _start(self) -> None:
        self.weight_sum = dict.fromkeys(self.structure.layers, 0.0)
        self.group_sum = dict.fromkeys(self.group_of.values(), 0.0)

    def add(self, sums: BlockSums) -> None:
        for layer, value in sums.weights.items():
            self.weight_sum[layer] += value
        for name, value in sums.values.items():
            self.group_sum[self.group_of[name]] += value

    def sums(self) -> dict[str, Array]:
        """What the probe under way has found so far."""
        return {
            "weights": np.array(list(self.weight_sum.values())),
            "groups": np.array(list(self.group_sum.values())),
        }

    def restore(self, sums: Mapping[str, Array]) -> None:
        """Take up what `sums` gave."""
        self.weight_sum = dict(zip(self.weight_sum, sums["weights"].tolist(), strict=True))
        self.group_sum = dict(zip(self.group_sum, sums["groups"].tolist(), strict=True))

    def end_of_probe(self, samples: int) -> None:
        for total, kept in ((self.weight_sum, self.weights), (self.group_sum, self.groups)):
            for name, value in total.items():
                kept.setdefault(name, []).append(value / samples)
        self._start()

    def worst(self) -> float:
        """The largest relative standard error; blocks without any curvature do not count."""
        found = [mean_and_error(v) for v in (*self.weights.values(), *self.groups.values())]
        largest = max((abs(mean) for mean, _ in found), default=0.0)
        return max((e / abs(m) if m else math.inf for m, e in found if e > 1e-9 * largest), default=0.0)


def mean_and_error(values: list[float]) -> tuple[float, float]:
    """Mean and its standard error (infinite for a single value)."""
    n = len(values)
    mean = math.fsum(values) / n
    if n < 2:
        return mean, math.inf
    return mean, math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1) / n)


def _trace(values: list[float], numel: int, samples: int) -> Trace:
    mean, error = mean_and_error(values)
    return Trace(max(mean, 0.0) / numel, error / numel, len(values), samples, numel)


def _numel(graph: Graph, structure: Structure, group: str) -> int:
    """Elements per sample of all values of a group that layers read."""
    read = {structure.reads[layer] for layer in structure.tied()[group]}
    return sum(graph.type_of(value).numel for value in read)

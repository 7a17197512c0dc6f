"""round-weights: weights to integers layer by layer, each layer making up for what went before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from passes.analysis.calibrate_ranges import check_inputs
from passes.analysis.layer_inputs import separate_layer_inputs
from passes.plan.simulate import rounding_grids
from passes.quantize.correct_bias import corrected_bias
from passes.quantize.gptq import damped, follow, round_layer
from passes.structure import Structure
from qcompile.errors import DataError, PassContractError, UsageError
from qcompile.exec.tensors import Tensor, fake_quantize
from qcompile.exec.torch_moments import Moments
from qcompile.exec.torch_steps import PairedSteps
from qcompile.ir import Array, Graph, Node
from qcompile.pm.base import ON_FLOAT, Batches, Levels, Pass, PassContext, PassResult, Report
from qcompile.pm.facts import BITS, RANGES, ROUNDED, Rounded
from qcompile.semantics.grids import quantize_weights, weight_scales

METHODS = ("gptq", "nearest")

_SHRINK = np.arange(1.0, 0.39, -0.06)
"""Candidate scales as shares of the one that clips nothing."""

_EXACT_FROM = 8
"""Weight bits from which rounding to nearest is as good as anything; only biases are corrected there."""


@dataclass(frozen=True)
class RoundWeights(Pass):
    """Choose the integers of all weights, and the biases that go with them, from calibration samples.

    Before:  notes ranges and bits        After:  note rounded

    Layer by layer in execution order: what a layer reads comes from the network whose earlier layers are rounded
    already and whose activations are; what it should give comes from the float network.  First the real weights
    move to where they reproduce the float outputs best from rounded inputs, then GPTQ rounds them (both in
    `passes.quantize.gptq`), then the bias takes up what is left of the mean shift.  At 8 bits and more weights are
    rounded to nearest and only biases are corrected.

    Attributes:
        method: "gptq", or "nearest" for no note at all: `integerize` then rounds to nearest.
        samples: most calibration samples used.
        positions: most output positions of a convolution looked at per sample; the others are near copies.
        megabytes: most memory for the live values of all samples; the number of samples is lowered to fit.
        sweeps: of coordinate descent behind GPTQ.
    """

    name: ClassVar[str] = "round-weights"
    levels: ClassVar[Levels] = ON_FLOAT
    requires = (RANGES, BITS)
    provides = (ROUNDED,)
    needs = ("calibration",)

    method: str = "gptq"
    samples: int = 512
    positions: int = 256
    megabytes: int = 2048
    sweeps: int = 4

    def run(self, graph: Graph, ctx: PassContext) -> PassResult:
        """Raises UsageError for an unknown method, DataError where there are no samples or they do not fit."""
        if self.method not in METHODS:
            raise UsageError(f"unknown rounding {self.method!r}", hint=f"one of {', '.join(METHODS)}")
        if ctx.calibration is None:
            raise PassContractError("round-weights needs calibration samples")
        table: dict[str, Rounded] = {}
        facts: dict[str, object] = {"method": self.method}
        if self.method == "gptq":
            table, facts["samples"] = self._round_all(graph, ctx, ctx.calibration)
        return PassResult(graph.with_notes(graph.notes.with_table(ROUNDED, table)), Report(facts=facts))

    def _round_all(self, graph: Graph, ctx: PassContext, calibration: Batches) -> tuple[dict[str, Rounded], int]:
        structure = Structure(graph)
        view = separate_layer_inputs(graph, structure)
        copies = {name: value for value, name in view.read_as.items() if name != value}
        bits = graph.notes[BITS]
        grids = rounding_grids(structure, copies, graph.notes[RANGES], bits)

        def quantize(value: str, x: Tensor) -> Tensor:
            return fake_quantize(x, grids[value]) if value in grids else x

        limit = max(1, min(self.samples, (self.megabytes << 20) // (2 * 4 * peak_elements(view.graph))))
        batches = first_samples(graph, calibration, limit)
        steps = PairedSteps(view.graph, batches, quantize)
        rng = ctx.rng(self.name)
        table: dict[str, Rounded] = {}
        for done, layer in enumerate(structure.layers):
            ctx.progress(self.name, done, len(structure.layers))
            node = graph.by_name[layer]
            shape, second = graph.const(node, "w").shape, bits[layer].w < _EXACT_FROM
            moments = Moments(node, shape, self.positions, rng, second)
            for real, rounded in steps.inputs_of(layer):
                moments.add(real, rounded)
            table[layer] = self._round(graph, node, bits[layer].w, moments)
            steps.replace(layer, table[layer].real(), table[layer].b)
        return table, sum(len(next(iter(batch.values()))) for batch in batches)

    def _round(self, graph: Graph, node: Node, bits: int, moments: Moments) -> Rounded:
        weights = graph.const(node, "w")
        bias = graph.const_or(node, "b")
        b = np.zeros(len(weights)) if bias is None else bias.astype(np.float64)
        w = weights.reshape(moments.groups, len(weights) // moments.groups, -1).astype(np.float64)
        x, d = moments.x / moments.count, moments.d / moments.count
        if bits >= _EXACT_FROM:
            scale = weight_scales(weights, bits)
            q = quantize_weights(weights, bits, scale)
        else:
            xx, dx = moments.xx / moments.count, moments.dx / moments.count
            found, scales = round_layer(follow(w, xx, dx), damped(xx), bits, _SHRINK, self.sweeps)
            q, scale = found.reshape(weights.shape).astype(np.int8), scales.reshape(-1)
        rounded = Rounded(bits, q, scale, b)
        return Rounded(bits, q, scale, corrected_bias(b, w, rounded.real().reshape(w.shape), x, d))


def first_samples(graph: Graph, calibration: Batches, limit: int) -> list[Mapping[str, Array]]:
    """The inputs of the first `limit` samples, in batches; raises DataError where there are none."""
    batches: list[Mapping[str, Array]] = []
    seen = 0
    for batch in calibration():
        inputs = check_inputs(graph, batch, seen)
        batches.append({name: array[: limit - seen] for name, array in inputs.items()})
        seen += len(next(iter(batches[-1].values())))
        if seen >= limit:
            break
    if not seen:
        raise DataError("the calibration data holds no samples")
    return batches


def peak_elements(graph: Graph) -> int:
    """Elements of one sample that are alive at once, at most: what each node reads, yields and leaves for later."""
    last = {value: users[-1].name for value, users in graph.users.items() if users}
    alive = sum(port.type.numel for port in graph.inputs)
    peak = alive
    for node in graph.nodes:
        alive += node.type.numel
        peak = max(peak, alive)
        alive -= sum(graph.type_of(v).numel for v in dict.fromkeys(node.inputs) if last.get(v) == node.name)
    return peak

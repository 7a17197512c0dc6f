"""round-weights: weights to integers layer by layer, each layer making up for what went before."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from passes.analysis.calibrate_ranges import data_digest
from passes.analysis.layer_inputs import separate_layer_inputs
from passes.analysis.samples import first_samples
from passes.analysis.subjects import rounding_grids
from passes.quantize.correct_bias import corrected_bias
from passes.quantize.layer_rounding import EXACT_FROM, RoundedLayer, round_moments
from passes.structure import Structure
from qcompile.errors import PassContractError, UsageError
from qcompile.exec.tensors import Tensor, fake_quantize
from qcompile.exec.torch_moments import Moments
from qcompile.exec.torch_steps import PairedSteps
from qcompile.exec.torch_teacher import Teacher
from qcompile.exec.torch_tune import LayerIntegers, Schedule, Tuner
from qcompile.ir import Array, Graph, Node
from qcompile.pm.base import ON_FLOAT, Batches, Levels, Pass, PassContext, PassResult, Report
from qcompile.pm.facts import BITS, RANGES, ROUNDED, BitChoice, Rounded
from qcompile.pm.notes_json import notes_to_json
from qcompile.pm.work import digest, recalled
from qcompile.semantics.grids import weight_range

METHODS = ("gptq", "adaround", "adaquant", "discquant", "nearest")


@dataclass(frozen=True)
class RoundWeights(Pass):
    """Choose the integers of all weights, and the biases that go with them, from calibration samples.

    Before:  notes ranges and bits        After:  note rounded

    Layer by layer in execution order: what a layer reads comes from the network whose earlier layers are rounded
    already and whose activations are; what it should give comes from the float network, and where its output is added
    to a value that is there already, their sum does.  First the real weights
    move to where they reproduce the float outputs best from rounded inputs, then the method rounds them, with a
    clipping search of every channel's scale, then the bias takes up what is left of the mean shift.  How far second
    moments are trusted is cross-validated (`passes.quantize.shrinkage`).  At 8 bits and more weights are rounded to
    nearest and only biases are corrected.

    Attributes:
        method: "gptq" (Frantar et al. 2022, and a coordinate descent); "adaround", "adaquant" (learning problems of one
            layer, `passes.quantize.learned`); "discquant" (GPTQ's grid, then all integers at once by the divergence of
            the network's outputs, Chee et al. 2025); or "nearest" for no note at all: `integerize` then rounds to
            nearest.
        samples: most calibration samples used.
        positions: most output positions of a convolution looked at per sample; the others are near copies.
        megabytes: most memory for the live values of all samples; the number of samples is lowered to fit.
        sweeps: of coordinate descent behind GPTQ.
        epochs: of discquant.
        winograd: whether 3×3 layers of 5 and 6 bits are kept legal for the target's Winograd kernel where that costs
            little (`passes.quantize.winograd_cap`).
    """

    name: ClassVar[str] = "round-weights"
    levels: ClassVar[Levels] = ON_FLOAT
    requires = (RANGES, BITS)
    provides = (ROUNDED,)
    needs = ("calibration",)

    method: str = "gptq"
    samples: int = 512
    positions: int = 256
    megabytes: int = 3072
    sweeps: int = 4
    epochs: int = 8
    winograd: bool = True

    def run(self, graph: Graph, ctx: PassContext) -> PassResult:
        """Raises UsageError for an unknown method, DataError where there are no samples or they do not fit."""
        if self.method not in METHODS:
            raise UsageError(f"unknown rounding {self.method!r}", hint=f"one of {', '.join(METHODS)}")
        if ctx.calibration is None:
            raise PassContractError("round-weights needs calibration samples")
        table: dict[str, Rounded] = {}
        facts: dict[str, object] = {"method": self.method}
        if self.method != "nearest":
            table, found = self._recalled(graph, ctx, ctx.calibration)
            facts |= found
        return PassResult(graph.with_notes(graph.notes.with_table(ROUNDED, table)), Report(facts=facts))

    def _recalled(
        self, graph: Graph, ctx: PassContext, calibration: Batches
    ) -> tuple[dict[str, Rounded], dict[str, object]]:
        """What `_round_all` finds, or found in an earlier run of the same plan."""
        bits = graph.notes[BITS]

        def key() -> str:
            plan = [(layer, choice.w, choice.a) for layer, choice in sorted(bits.items())]
            limits = [ctx.target.winograd_inputs, ctx.target.winograd_weights]
            ranges = notes_to_json(graph.notes, [RANGES])
            return digest(
                self.spec(), graph.content_hash, ranges, plan, limits, ctx.seed, data_digest(graph, calibration)
            )

        def compute() -> dict[str, Array]:
            table, facts = self._round_all(graph, ctx, calibration)
            parts = {f"{part} {layer}": getattr(r, part) for layer, r in table.items() for part in ("q", "scale", "b")}
            return parts | {"facts": np.array(json.dumps(facts))}

        found = recalled(ctx.work, key, compute)
        table = {
            layer: Rounded(choice.w, *(found[f"{part} {layer}"] for part in ("q", "scale", "b")))
            for layer, choice in ((layer, bits[layer]) for layer in Structure(graph).layers)
        }
        return table, json.loads(str(found["facts"]))

    def _round_all(
        self, graph: Graph, ctx: PassContext, calibration: Batches
    ) -> tuple[dict[str, Rounded], dict[str, object]]:
        structure = Structure(graph)
        view = separate_layer_inputs(graph, structure)
        bits = graph.notes[BITS]
        grids = rounding_grids(structure, view.copies, graph.notes[RANGES], bits)

        def quantize(value: str, x: Tensor) -> Tensor:
            return fake_quantize(x, grids[value]) if value in grids else x

        limit = max(1, min(self.samples, (self.megabytes << 20) // (2 * 4 * peak_elements(view.graph))))
        batches: list[Mapping[str, Array]] = [b.inputs for b in first_samples(graph, calibration, limit, limit)]
        steps = PairedSteps(view.graph, batches, quantize)
        rng = ctx.rng(self.name)
        table: dict[str, Rounded] = {}
        layers: dict[str, RoundedLayer] = {}
        for done, layer in enumerate(structure.layers):
            ctx.progress(self.name, done, len(structure.layers))
            node = graph.by_name[layer]
            second = bits[layer].w < EXACT_FROM
            moments = Moments(node, graph.const(node, "w"), self.positions, rng, second, folds=2 if second else 1)
            for read in steps.inputs_of(layer, added_to(structure, layer)):
                moments.add(*read)
            cap = self._winograd_limit(node, bits[layer], ctx) if self.winograd else 0
            table[layer], layers[layer] = self._round(graph, node, bits[layer].w, moments, cap)
            steps.replace(layer, table[layer].real(), table[layer].b)
        facts: dict[str, object] = {
            "samples": sum(len(next(iter(batch.values()))) for batch in batches),
            "capped": [name for name, layer in layers.items() if layer.winograd],
            "not capped": [name for name, layer in layers.items() if layer.refused],
        }
        if self.method == "discquant":
            aims = {name: layer.aim for name, layer in layers.items()}
            table = self._tuned(view.graph, ctx, batches, quantize, table, aims)
        return table, facts

    def _winograd_limit(self, node: Node, bits: BitChoice, ctx: PassContext) -> int:
        """Largest |U| with which the target runs a layer by Winograd, 0 where it would not in any case."""
        if node.op != "conv2d" or bits.w not in (5, 6) or (1 << bits.a) - 1 > ctx.target.winograd_inputs:
            return 0
        plain = node.attrs.ints("stride") == (1, 1) and node.attrs.ints("dilation") == (1, 1)
        return ctx.target.winograd_weights if plain and node.attrs.int("groups") == 1 else 0

    def _round(self, graph: Graph, node: Node, bits: int, moments: Moments, limit: int) -> tuple[Rounded, RoundedLayer]:
        weights = graph.const(node, "w")
        bias = graph.const_or(node, "b")
        b = np.zeros(len(weights)) if bias is None else bias.astype(np.float64)
        w = weights.reshape(moments.groups, len(weights) // moments.groups, -1).astype(np.float64)
        x, d, e = (mean / moments.count for mean in (moments.x, moments.d, moments.e))
        method = "gptq" if self.method == "discquant" else self.method
        layer = round_moments(w, weights.shape, moments, bits, method, self.sweeps, limit)
        q, scale = layer.q.reshape(weights.shape).astype(np.int8), layer.scale.reshape(-1).astype(np.float64)
        rounded = Rounded(bits, q, scale, b)
        return Rounded(bits, q, scale, corrected_bias(b, w, rounded.real().reshape(w.shape), x, d, e)), layer

    def _tuned(
        self,
        graph: Graph,
        ctx: PassContext,
        batches: list[Mapping[str, Array]],
        quantize: Callable[[str, Tensor], Tensor],
        table: Mapping[str, Rounded],
        aims: Mapping[str, Array],
    ) -> dict[str, Rounded]:
        start = {
            name: LayerIntegers(r.q, r.scale, r.b, *weight_range(r.bits), aims[name].reshape(r.q.shape))
            for name, r in table.items()
        }
        tuner = Tuner(Teacher(graph, batches, quantize), start)
        found = tuner.run(Schedule(self.epochs), ctx.seed, lambda done, total: ctx.progress(self.name, done, total))
        return {name: Rounded(table[name].bits, q, table[name].scale, b) for name, (q, b) in found.items()}


def added_to(structure: Structure, layer: str) -> str | None:
    """The value of the same shape that a layer's output is added to, or None."""
    region = next(region for region in structure.regions.values() if region.anchor.name == layer)
    if region.join is None or region.join.op != "add":
        return None
    other = next((value for value in region.join.inputs if value != layer), None)
    same = other is not None and structure.graph.type_of(other).sample == region.anchor.type.sample
    return other if same else None


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

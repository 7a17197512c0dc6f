"""integerize: the one lossy pass, from annotated floats to integers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from passes.quantize.layer_weights import IntegerWeights, ScaleMemo, integer_weights
from passes.quantize.terms import Term, emit_requant, exact_mean_ratio
from passes.structure import Region, Structure
from qcompile.errors import GraphError
from qcompile.exec.unary import evaluate as evaluate_unary
from qcompile.ir import (
    INT,
    MOVEMENT,
    WEIGHTED,
    Aspect,
    Graph,
    GraphBuilder,
    Grid,
    Node,
    bits_of,
    int_range,
)
from qcompile.pm.base import FLOAT_TO_INT, Levels, Nothing, Pass, PassContext, PassResult, Report
from qcompile.pm.facts import BITS, RANGES, ROUNDED, BitChoice, Range, Rounded
from qcompile.semantics.grids import activation_grid, dequantize, quantize

STORED_BITS = 8
"""Width of stored values that more than layers read (additions, pooling, outputs)."""

_WIDE_LIMIT = 2.0**28
"""Integers of an output that stays int32 are at most this large: far from overflow, finer than float32."""


@dataclass(frozen=True)
class Integerize(Pass):
    """Replace floats by integers on the grids and at the bits that earlier passes chose.

    Before:  %c = conv2d(%x, w, b)      After:  %c:acc = conv2d(%x, w', b') : i32
             %r = clip(%c) {lo=0}               %r = requant(%c:acc, m0, e) {lo=0, hi=255} : u8
    """

    name: ClassVar[str] = "integerize"
    levels: ClassVar[Levels] = FLOAT_TO_INT
    requires = (RANGES, BITS)
    changes = Aspect.STRUCTURE | Aspect.WEIGHTS
    preserves = Nothing("rounds weights and activations")

    def run(self, graph: Graph, ctx: PassContext) -> PassResult:
        writer = Integerizer(graph, graph.notes[RANGES], graph.notes[BITS], rounded=graph.notes.get(ROUNDED))
        result = writer.run()
        copies = tuple(f"{name} is stored at 8 bits and copied at fewer for its layers" for name in writer.copies)
        return PassResult(result, Report(done=copies))


class Integerizer:
    """Writes the integer graph region by region.

    Args:
        graph: canonical float graph.
        ranges: by grid group.
        bits: by layer.
        scales: weight scales found before, by (layer, bits); filled as a side effect.
        rounded: integer weights chosen before, by layer; others are rounded to nearest.
    """

    def __init__(
        self,
        graph: Graph,
        ranges: Mapping[str, Range],
        bits: Mapping[str, BitChoice],
        scales: ScaleMemo | None = None,
        rounded: Mapping[str, Rounded] | None = None,
    ) -> None:
        self.graph, self.ranges, self.bits = graph, ranges, bits
        self.structure = Structure(graph)
        self.scales: ScaleMemo = {} if scales is None else scales
        self.builder = GraphBuilder(graph.name, INT)
        self.copies: dict[tuple[str, Grid], str] = {}
        self.grids: dict[str, Grid] = {}
        for group in self.structure.members:
            if group not in self.structure.wide:
                self.grids[group] = self._grid(group, self._stored_bits(group))
        self.weights: dict[str, IntegerWeights] = {
            layer: integer_weights(
                graph, graph.by_name[layer], bits[layer].w, self._layer_grid(layer), self.scales,
                (rounded or {}).get(layer),
            )
            for layer in self.structure.layers
        }  # fmt: skip
        for group in self.structure.wide:
            limit = max(self._reach(value) for value in self.structure.members[group])
            self.grids[group] = Grid(max(limit, 1e-30) / _WIDE_LIMIT, 0, "i32")

    def run(self) -> Graph:
        for port in self.graph.inputs:
            grid = self.grids[self.structure.group_of[port.name]]
            self.builder.input(port.name, port.type.with_dtype(grid.dtype), grid)
        for region in self.structure.regions.values():
            self._region(region)
        for out in self.graph.outputs:
            self.builder.output(out.name, out.value, self._grid_of(out.value))
        return self.builder.build(tail=self.graph.tail)

    # Grids

    def _stored_bits(self, group: str) -> int:
        layers = self.structure.tied().get(group, ())
        return STORED_BITS if group in self.structure.shared or not layers else self.bits[layers[0]].a

    def _grid(self, group: str, bits: int) -> Grid:
        lo, hi = self.ranges[group].clip[bits]
        return activation_grid(lo, hi, bits)

    def _grid_of(self, value: str) -> Grid:
        return self.grids[self.structure.group_of[value]]

    def _layer_grid(self, layer: str) -> Grid:
        group = self.structure.layer_group(layer)
        return self._grid(group, self.bits[layer].a) if group in self.structure.shared else self.grids[group]

    def _reach(self, value: str) -> float:
        """The largest magnitude a value can have in exact arithmetic on its operands' grids."""
        region = self.structure.regions[value]
        if region.anchor.op in MOVEMENT:
            if region.anchor.op == "pad":
                return abs(region.anchor.attrs.float("value"))
            return max((self._stored_reach(v) for v in region.reads()), default=0.0)
        total = 0.0
        if region.anchor.op in WEIGHTED:
            total = self.weights[region.anchor.name].reach
            others = [v for v in region.join.inputs if v != region.anchor.name] if region.join else []
        elif region.anchor.op == "mul":
            left, right = region.anchor.inputs
            return self._stored_reach(left) * self._stored_reach(right)
        else:
            others = list(region.anchor.inputs)
        return total + sum(self._stored_reach(v) for v in others)

    def _stored_reach(self, value: str) -> float:
        if self.structure.group_of[value] in self.structure.wide:
            return 0.0  # the same group: its producers are counted themselves
        grid = self._grid_of(value)
        lo, hi = int_range(grid.dtype)
        return max(abs(lo - grid.zero), abs(hi - grid.zero)) * grid.scale

    # Regions

    def _region(self, region: Region) -> None:
        node = region.anchor
        if node.op in MOVEMENT or node.op == "max_pool":
            self._move(region)
        elif node.op == "unary":
            self._table(region)
        else:
            lo, hi = self._bounds(region)
            slope = None
            if region.activation is not None and region.activation.op == "prelu":
                slope = self.graph.const(region.activation, "slope").astype(np.float64)
            emit_requant(
                self.builder, region.value, self._terms(region), self._grid_of(region.value), lo, hi,
                self._sample(region), slope, self._origin(region),
            )  # fmt: skip

    def _sample(self, region: Region) -> tuple[int, ...]:
        return self.graph.by_name[region.value].type.sample

    def _origin(self, region: Region) -> tuple[str, ...]:
        return (*dict.fromkeys(node.name for node in region.nodes), "integerize")

    def _bounds(self, region: Region) -> tuple[int, int]:
        """Integer clip bounds of a region: those of the dtype, narrowed by a clip at its end."""
        grid = self._grid_of(region.value)
        lo, hi = int_range(grid.dtype)
        clip = region.activation
        if clip is not None and clip.op == "clip":
            low, high = clip.attrs.float("lo"), clip.attrs.float("hi")
            if np.isfinite(low):
                lo = int(np.clip(np.rint(low / grid.scale) + grid.zero, lo, hi))
            if np.isfinite(high):
                hi = int(np.clip(np.rint(high / grid.scale) + grid.zero, lo, hi))
        return lo, hi

    def _terms(self, region: Region) -> list[Term]:
        node = region.anchor
        if node.op in WEIGHTED:
            terms = [self._layer(node)]
            if region.join is not None:
                other = next(v for v in region.join.inputs if v != node.name)
                terms.append(self._stored(other))
                if region.join.op == "sub":
                    second = region.join.inputs.index(node.name)  # 1: other − layer
                    terms[second ^ 1] = terms[second ^ 1].negated()
            return terms
        if node.op == "add":
            return [self._stored(v) for v in node.inputs]
        if node.op == "sub":
            return [self._stored(node.inputs[0]), self._stored(node.inputs[1]).negated()]
        if node.op in ("clip", "prelu"):
            return [self._stored(node.inputs[0])]
        return [self._sum(node)]

    def _stored(self, value: str) -> Term:
        grid = self._grid_of(value)
        return Term(value, np.asarray(grid.scale), grid.zero)

    def _layer(self, node: Node) -> Term:
        """Emit a convolution or linear layer; the term is its int32 accumulator."""
        grid, source = self._layer_grid(node.name), node.inputs[0]
        value = source if grid == self._grid_of(source) else self._copy(source, grid)
        weights = self.weights[node.name]
        attrs = {k: v for k, v in node.attrs.items() if k != "pad_value"} | {"weight_bits": self.bits[node.name].w}
        if node.op == "conv2d":
            attrs["pad_value"] = grid.zero
        acc = self.builder.add(
            node.op, [value], name=f"{node.name}:acc", consts={"w": weights.w, "b": weights.b}, attrs=attrs,
            origin=(node.name, "integerize"),
        )  # fmt: skip
        scale = weights.scale * grid.scale
        return Term(acc, scale.reshape(-1, 1, 1) if node.op == "conv2d" else scale, 0)

    def _copy(self, value: str, grid: Grid) -> str:
        """A stored value once more, on another grid."""
        if (value, grid) not in self.copies:
            lo, hi = int_range(grid.dtype)
            sample = self.builder.type_of(value).sample
            origin = (value, "integerize")
            self.copies[value, grid] = emit_requant(
                self.builder,
                f"{value}:{grid.dtype}",
                [self._stored(value)],
                grid,
                lo,
                hi,
                sample,
                None,
                origin,
            )
        return self.copies[value, grid]

    def _sum(self, node: Node) -> Term:
        """Emit mul, avg_pool or reduce_mean as an int32 sum; the term carries the scale of a unit of the sum."""
        name = f"{node.name}:acc"
        grids = [self._grid_of(v) for v in node.inputs]
        origin = (node.name, "integerize")
        if node.op == "mul":
            zeros = (grids[0].zero, grids[1].zero)
            acc = self.builder.add("mul", node.inputs, name=name, attrs={"zeros": zeros}, origin=origin)
            return Term(acc, np.asarray(grids[0].scale * grids[1].scale), 0)
        if node.op == "avg_pool":
            attrs = {k: node.attrs[k] for k in ("kernel", "stride", "pad")} | {"pad_value": grids[0].zero}
            acc = self.builder.add("sum_pool", node.inputs, name=name, attrs=attrs, origin=origin)
            kernel = node.attrs.ints("kernel")
            shape = self.graph.type_of(node.inputs[0]).sample
            ratio = exact_mean_ratio(node.attrs, shape)
            return Term(acc, grids[0].scale * ratio, grids[0].zero * kernel[0] * kernel[1])
        if node.op == "reduce_mean":
            attrs = {k: node.attrs[k] for k in ("axes", "keepdims")}
            acc = self.builder.add("reduce_sum", node.inputs, name=name, attrs=attrs, origin=origin)
            count = self.graph.type_of(node.inputs[0]).numel // node.type.numel
            return Term(acc, np.asarray(grids[0].scale / count), grids[0].zero * count)
        raise GraphError(f"integerize has no rule for {node.op}", node=node.name)

    def _move(self, region: Region) -> None:
        node, grid = region.anchor, self._grid_of(region.value)
        inputs = [v if self._grid_of(v) == grid else self._copy(v, grid) for v in node.inputs]
        attrs = dict(node.attrs)
        if node.op == "pad":
            attrs["value"] = float(quantize(np.asarray(node.attrs.float("value")), grid))
        self.builder.add(node.op, inputs, name=node.name, attrs=attrs, origin=self._origin(region))

    def _table(self, region: Region) -> None:
        """A function of one value as an exact table over its integers."""
        node = region.anchor
        source, target = self._grid_of(node.inputs[0]), self._grid_of(region.value)
        entries = np.arange(1 << bits_of(source.dtype))
        reals = evaluate_unary(node.attrs.str("expr"), dequantize(entries, source).astype(np.float64))
        consts = {"t": quantize(np.nan_to_num(np.asarray(reals)), target)}
        self.builder.add(
            "table", node.inputs, name=node.name, consts=consts, attrs={"dtype": target.dtype},
            origin=self._origin(region),
        )  # fmt: skip

"""normalize-pooling: one form for each kind of pooling, and padding goes into the window behind it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from passes.canonicalize.rewrite import sole_producer
from qcompile.ir import Aspect, Graph, GraphBuilder, Node, rebuild
from qcompile.ir.ops import AttrValue
from qcompile.pm.base import ON_FLOAT, Close, Levels, Pass, PassContext, PassResult, Report

_WINDOWED = ("conv2d", "max_pool", "avg_pool")


@dataclass(frozen=True)
class NormalizePooling(Pass):
    """Give every pooling its simplest form, and move padding into conv2d and pooling.

    Before:  %p = avg_pool(%x) {kernel=(7, 7)}, x 7x7       After:  %p = reduce_mean(%x) {axes=(2, 3)}
    Before:  %m = reduce_mean(%x) {keepdims=0}              After:  reduce_mean {keepdims=1}, reshape
    Before:  %p = max_pool(%x) {kernel=(1, 1), stride=s}    After:  %p = slice(%x) {steps=(1, *s)}
    Before:  %q = pad(%x) {value=0}, %c = conv2d(%q)        After:  %c = conv2d(%x) {pad=…}
    """

    name: ClassVar[str] = "normalize-pooling"
    levels: ClassVar[Levels] = ON_FLOAT
    changes = Aspect.STRUCTURE
    preserves = Close(1e-5)

    def run(self, graph: Graph, ctx: PassContext) -> PassResult:
        done: list[str] = []

        def visit(b: GraphBuilder, node: Node, rename: Mapping[str, str]) -> str | None:
            source = rename[node.inputs[0]]
            if node.op in _WINDOWED and (padded := _absorbed(graph, node)) is not None:
                before, attrs = padded
                done.append(f"{before.name} into {node.name}")
                source = rename[before.inputs[0]]
                return b.copy(graph, node, {node.inputs[0]: source}, attrs=attrs, origin=_origin(node))
            value = _pooling(graph, b, node, source)
            if value is not None:
                done.append(node.name)
            return value

        return PassResult(rebuild(graph, visit), Report(done=tuple(done)))


def _origin(node: Node) -> tuple[str, ...]:
    return (*node.origin, "normalize-pooling")


def _pooling(graph: Graph, b: GraphBuilder, node: Node, source: str) -> str | None:
    x, attrs = graph.type_of(node.inputs[0]), node.attrs
    if node.op == "reduce_mean":
        axes = tuple(a for a in attrs.ints("axes") if x.shape[a] != 1)
        if axes == attrs.ints("axes") and attrs.int("keepdims"):
            return None
        if axes:
            kept: dict[str, AttrValue] = {"axes": tuple(sorted(axes)), "keepdims": 1}
            source = b.add("reduce_mean", [source], name=node.name, attrs=kept, origin=_origin(node))
        if b.type_of(source) == node.type:
            return source
        shape = {"shape": node.type.shape}
        return b.add("reshape", [source], name=f"{node.name}.shaped", attrs=shape, origin=_origin(node))
    if node.op not in ("avg_pool", "max_pool") or any(attrs.ints("pad")):
        return None
    kernel, stride = attrs.ints("kernel"), attrs.ints("stride")
    if kernel == (1, 1):
        if stride == (1, 1):
            return source
        steps: dict[str, AttrValue] = {"starts": (0, 0, 0), "ends": x.sample, "steps": (1, *stride)}
        return b.add("slice", [source], name=node.name, attrs=steps, origin=_origin(node))
    if node.op == "avg_pool" and kernel == x.shape[2:]:
        whole: dict[str, AttrValue] = {"axes": (2, 3), "keepdims": 1}
        return b.add("reduce_mean", [source], name=node.name, attrs=whole, origin=_origin(node))
    return None


def _absorbed(graph: Graph, node: Node) -> tuple[Node, dict[str, AttrValue]] | None:
    """The pad before a window and the window's attributes with it; None where they do not go together."""
    before = sole_producer(graph, node.inputs[0])
    if before is None or before.op != "pad":
        return None
    pads = before.attrs.ints("pads")
    around = (pads[1], pads[2], pads[4], pads[5]) if len(pads) == 6 else ()
    fill = -math.inf if node.op == "max_pool" else 0.0
    if not around or pads[0] or pads[3] or before.attrs.float("value") != fill:
        return None
    own = node.attrs.ints("pad")
    if node.op == "avg_pool" and any(own) and not node.attrs.int("count_pad"):
        return None
    merged: dict[str, AttrValue] = {"pad": tuple(a + b for a, b in zip(around, own, strict=True))}
    # What the pad operator adds always counts in the mean.
    return before, merged | ({"count_pad": 1} if node.op == "avg_pool" else {})

"""fold-affine: factors and offsets go into the weights of a neighbour, or become a layer of their own."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from passes.canonicalize.rewrite import (
    channel_axis,
    is_layer,
    per_channel,
    real,
    scale_layer,
    sole_producer,
    until_stable,
)
from qcompile.ir import BATCH, Aspect, Graph, GraphBuilder, Node, rebuild
from qcompile.pm.base import ON_FLOAT, Close, Levels, Pass, PassContext, PassResult, Report

MADE_LAYER = "made-layer"
"""In the origin of a layer that the source did not have, so that canonical-names gives it a neutral name."""


@dataclass(frozen=True)
class FoldAffine(Pass):
    """Fold affine into the layer before it, else into the layer behind it, else make it a depthwise 1x1
    conv2d.

    Before:  %c = conv2d(%x, w, b)              After:  %c = conv2d(%x, w·s, b·s + t)
             %a = affine(%c, s, t)

    An affine before a layer folds where padding does not see it: its shift is 0 or the layer has no padding.
    """

    name: ClassVar[str] = "fold-affine"
    levels: ClassVar[Levels] = ON_FLOAT
    changes = Aspect.STRUCTURE | Aspect.WEIGHTS
    preserves = Close(1e-3)

    def run(self, graph: Graph, ctx: PassContext) -> PassResult:
        done: list[str] = []
        refused: list[str] = []

        def step(graph: Graph) -> Graph | None:
            for node in graph.nodes:
                if node.op != "affine":
                    continue
                if after := _into_layer_before(graph, node) or _into_layer_behind(graph, node):
                    done.append(node.name)
                    return after
            return None

        graph = until_stable(graph, step)
        hosted = _behind_softmax(graph)

        def visit(b: GraphBuilder, node: Node, rename: Mapping[str, str]) -> str | None:
            if node.op != "affine" or node.name in hosted:
                return None
            refused.append(f"{node.name} becomes a depthwise conv2d: no layer next to it can take it up")
            return _depthwise(graph, b, node, rename[node.inputs[0]])

        return PassResult(rebuild(graph, visit), Report(tuple(done), tuple(refused)))


def _with_layer(
    graph: Graph, layer: Node, dropped: Node, consts: Mapping[str, NDArray[np.float32]], value: str
) -> Graph:
    """The graph with new constants in a layer and without the affine; `value` is what replaces it."""

    def visit(b: GraphBuilder, n: Node, rename: Mapping[str, str]) -> str | None:
        if n is dropped:
            return rename[value]
        if n is not layer:
            return None
        source = rename[layer.inputs[0]]
        origin = (*layer.origin, "fold-affine")
        return b.add(layer.op, [source], name=layer.name, consts=consts, attrs=layer.attrs, origin=origin)

    return rebuild(graph, visit)


def _into_layer_before(graph: Graph, node: Node) -> Graph | None:
    layer = sole_producer(graph, node.inputs[0])
    if layer is None or not is_layer(layer):
        return None
    axis, channels = channel_axis(layer), len(graph.const(layer, "w"))
    scale = per_channel(real(graph, node, "scale"), axis, channels)
    shift = per_channel(real(graph, node, "shift"), axis, channels)
    if scale is None or shift is None:
        return None
    return _with_layer(graph, layer, node, scale_layer(graph, layer, scale, shift), layer.name)


def _into_layer_behind(graph: Graph, node: Node) -> Graph | None:
    layer = graph.sole_user(node.name)
    if layer is None or not is_layer(layer):
        return None
    w = real(graph, layer, "w")
    grouped = layer.attrs.int("groups") if layer.op == "conv2d" else 1
    axis = 0 if layer.op == "conv2d" else layer.type.rank - 2
    channels = node.type.sample[axis]
    scale = per_channel(real(graph, node, "scale"), axis, channels)
    shift = per_channel(real(graph, node, "shift"), axis, channels)
    if scale is None or shift is None:
        return None
    if layer.op == "conv2d" and any(layer.attrs.ints("pad")) and shift.any():
        return None
    # Output channel o reads the input channels of its group.
    wide = np.repeat(scale.reshape(grouped, -1), len(w) // grouped, axis=0)
    offset = np.repeat(shift.reshape(grouped, -1), len(w) // grouped, axis=0)
    rest = (1,) * (w.ndim - 2)
    bias = real(graph, layer, "b") if layer.const("b") else np.zeros(len(w))
    added = (w * offset.reshape(*offset.shape, *rest)).reshape(len(w), -1).sum(axis=1)
    consts = {
        "w": (w * wide.reshape(*wide.shape, *rest)).astype(np.float32),
        "b": (bias + added).astype(np.float32),
    }
    return _with_layer(graph, layer, node, consts, node.inputs[0])


def _behind_softmax(graph: Graph) -> frozenset[str]:
    """Nodes that the host computes anyway."""
    found: set[str] = set()
    for node in graph.nodes:
        if node.op == "softmax" or found.intersection(node.inputs):
            found.add(node.name)
    return frozenset(found)


def _depthwise(graph: Graph, b: GraphBuilder, node: Node, source: str) -> str:
    """A depthwise 1x1 convolution; what is no image, or constants that vary inside it, become (n, 1, 1)."""
    sample = node.type.sample
    origin = (*node.origin, "fold-affine", MADE_LAYER)
    parts = {role: real(graph, node, role) for role in ("scale", "shift")}
    image = len(sample) == 3 and all(a.shape[1:] == (1, 1) for a in parts.values())
    channels = sample[0] if image else math.prod(sample)
    vectors = {
        role: np.broadcast_to(a, (channels, 1, 1) if image else sample).reshape(-1).astype(np.float32)
        for role, a in parts.items()
    }
    if not image:
        shape = (BATCH, channels, 1, 1)
        source = b.add("reshape", [source], name=f"{node.name}.flat", attrs={"shape": shape}, origin=origin)
    consts = {"w": vectors["scale"].reshape(-1, 1, 1, 1), "b": vectors["shift"]}
    value = b.add("conv2d", [source], name=node.name, consts=consts, attrs={"groups": channels}, origin=origin)
    if image:
        return value
    shaped = {"shape": (BATCH, *sample)}
    return b.add("reshape", [value], name=f"{node.name}.shaped", attrs=shaped, origin=origin)

"""Which channels of a network have to be scaled alike, and what scaling them does to the layers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import networkx as nx
import numpy as np
from numpy.typing import NDArray

from passes.canonicalize.rewrite import real
from qcompile.ir import WEIGHTED, Graph, GraphBuilder, Node, TensorType, rebuild

Real = NDArray[np.float64]
Places = NDArray[np.int64]

_ONE_BY_ONE = ("max_pool", "avg_pool", "resize", "prelu")
"""Operators with f(k·x) = k·f(x) for k > 0, in each channel by itself."""


@dataclass(frozen=True)
class Channels:
    """Sets of channels that one factor k > 0 can go through without changing what the network computes.

    A layer's rows take up the factors of its output channels and its columns those of its input channels, so sets end
    at layers.  In between, ReLU, PReLU, pooling, data movement and concatenation hand a channel on, and an addition
    makes one set of the channels that it adds.

    Attributes:
        sets: value → the set of each of its channels, (C,), numbered from 0.
        free: (S,) bool, whether a set may be scaled: false where an input, an output or another operator is in it.
        bounds: values behind a clip at a finite bound, which stays where it is → that bound.
    """

    sets: Mapping[str, Places]
    free: NDArray[np.bool_]
    bounds: Mapping[str, float]


def channels_of(graph: Graph) -> Channels:
    """The sets of all values of a float graph; the channel axis of every value is 1, the one behind the batch."""
    walk = _Walk(graph)
    for port in graph.inputs:
        walk.sets[port.name] = walk.held(port.type)
    for node in graph.nodes:
        walk.sets[node.name] = walk.visit(node)
    for value in graph.output_values:
        walk.fixed.extend(walk.sets[value].tolist())
    view: nx.Graph[int] = nx.Graph()
    view.add_nodes_from(range(walk.count))
    view.add_edges_from(walk.pairs)
    number = np.zeros(walk.count, np.int64)
    components = list(nx.connected_components(view))
    for i, component in enumerate(components):
        number[list(component)] = i
    free = np.ones(len(components), bool)
    free[number[walk.fixed]] = False
    return Channels({value: number[places] for value, places in walk.sets.items()}, free, walk.bounds)


@dataclass
class _Walk:
    """Channels numbered one by one, with what ties them, in execution order."""

    graph: Graph
    sets: dict[str, Places] = field(default_factory=dict)
    bounds: dict[str, float] = field(default_factory=dict)
    pairs: list[tuple[int, int]] = field(default_factory=list)
    fixed: list[int] = field(default_factory=list)
    count: int = 0

    def new(self, size: int) -> Places:
        self.count += size
        return np.arange(self.count - size, self.count)

    def held(self, kind: TensorType) -> Places:
        """New channels that keep their scale."""
        places = self.new(kind.sample[0] if kind.sample else 1)
        self.fixed.extend(places.tolist())
        return places

    def visit(self, node: Node) -> Places:
        """The channels of a node's value."""
        read = [self.sets[value] for value in node.inputs]
        found = self._layer(node, read[0]) if node.op in WEIGHTED else self._handed_on(node, read)
        if found is not None:
            return found
        for places in read:
            self.fixed.extend(places.tolist())
        return self.held(node.type)

    def _layer(self, node: Node, read: Places) -> Places | None:
        """None for a linear layer on the last of several axes."""
        w = self.graph.const(node, "w")
        fits = node.type.rank == 2 or node.op == "conv2d"
        return self.new(len(w)) if fits else None

    def _handed_on(self, node: Node, read: list[Places]) -> Places | None:
        """The channels of what is no layer, or None where a factor does not go through."""
        first, attrs = read[0], node.attrs
        before = self.graph.type_of(node.inputs[0])
        if node.op in _ONE_BY_ONE or (node.op == "reduce_mean" and 1 not in attrs.ints("axes")):
            return first
        if node.op == "clip" and attrs.float("lo") in (0.0, -math.inf) and attrs.float("hi") > 0:
            if attrs.float("hi") < math.inf:
                self.bounds[node.name] = attrs.float("hi")
            return first
        if node.op in ("add", "sub") and before == self.graph.type_of(node.inputs[1]):
            return self._tied(read)
        if node.op == "concat":
            return np.concatenate(read) if attrs.int("axis") == 1 else self._tied(read)
        if node.op == "slice":
            return first[attrs.ints("starts")[0] : attrs.ints("ends")[0] : attrs.ints("steps")[0]]
        if node.op == "pad" and attrs.float("value") == 0:
            pads = attrs.ints("pads")
            return np.concatenate([self.new(pads[0]), first, self.new(pads[len(pads) // 2])])
        if node.op == "transpose" and attrs.ints("perm")[1] == 1:
            return first
        if node.op == "reshape" and node.type.sample[0] % len(first) == 0:
            return np.repeat(first, node.type.sample[0] // len(first))  # the channel axis varies most slowly
        return None

    def _tied(self, read: list[Places]) -> Places:
        for places in read[1:]:
            self.pairs.extend(zip(read[0].tolist(), places.tolist(), strict=True))
        return read[0]


def blocks(graph: Graph, layer: Node) -> Real:
    """A layer's weights as (G, O/G, I/G, taps): G groups of convolution, 1 for a linear layer."""
    w = real(graph, layer, "w")
    groups = layer.attrs.int("groups") if layer.op == "conv2d" else 1
    return w.reshape(groups, w.shape[0] // groups, w.shape[1], -1)


def scaled(graph: Graph, channels: Channels, factors: Real, origin: str) -> Graph:
    """The graph whose channels are those of before times the factors of their sets, (S,), where no clip is in the way.

    Layers are computed in float64 and rounded once; untouched layers stay as they are.
    """

    def visit(b: GraphBuilder, node: Node, rename: Mapping[str, str]) -> str | None:
        if node.op not in WEIGHTED:
            return None
        out, read = (factors[channels.sets[value]] for value in (node.name, node.inputs[0]))
        if (out == 1).all() and (read == 1).all():
            return None
        w = blocks(graph, node)
        w = w * out.reshape(w.shape[0], w.shape[1], 1, 1) / read.reshape(w.shape[0], 1, w.shape[2], 1)
        consts = {"w": w.reshape(graph.const(node, "w").shape)}
        if node.const("b"):
            consts["b"] = real(graph, node, "b") * out
        rounded = {role: array.astype(np.float32) for role, array in consts.items()}
        inputs = [rename[value] for value in node.inputs]
        return b.add(node.op, inputs, name=node.name, consts=rounded, attrs=node.attrs, origin=(*node.origin, origin))

    return rebuild(graph, visit)

"""canonical-names: one order and one naming of nodes, whatever the source called them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from passes.canonicalize.fold_affine import MADE_LAYER
from qcompile.ir import WEIGHTED, Aspect, Graph, GraphBuilder, Node
from qcompile.pm.base import ON_FLOAT, Exact, Levels, Pass, PassContext, PassResult, Report


@dataclass(frozen=True)
class CanonicalNames(Pass):
    """Order nodes by a depth-first walk from the outputs, and name them after what they do.

    Layers keep their names, which captures take from the module that owns the weights; other nodes are called
    `relu.0`, `relu.1`, `add.0`, … in that order.  Captures of one network from torch and from ONNX then
    agree.
    """

    name: ClassVar[str] = "canonical-names"
    levels: ClassVar[Levels] = ON_FLOAT
    changes = Aspect.STRUCTURE | Aspect.WEIGHTS
    preserves = Exact()

    def run(self, graph: Graph, ctx: PassContext) -> PassResult:
        names = _names(graph, frozenset())
        main = _rename(graph, names, {})
        if graph.tail is None:
            return PassResult(main)
        # Outputs that only the tail sees are called like the values they show.
        public = {out.name for out in graph.tail.outputs}
        ports = {out.name: _free(names[out.value], public) for out in graph.outputs if out.name not in public}
        main = replace(main, outputs=tuple(replace(o, name=ports.get(o.name, o.name)) for o in main.outputs))
        taken = frozenset(out.name for out in main.outputs)
        tail = _rename(graph.tail, _names(graph.tail, taken, frozenset(names.values())), ports)
        return PassResult(replace(main, tail=tail), Report(facts={"renamed": len(names)}))


def _free(name: str, taken: set[str]) -> str:
    while name in taken:
        name = f"{name}.in"
    return name


def _ordered(graph: Graph) -> list[Node]:
    """Nodes in depth-first post-order from the outputs: operands before their users, left before right."""
    order: list[Node] = []
    seen: set[str] = set()
    for out in graph.outputs:
        stack = [(out.value, False)]
        while stack:
            value, ready = stack.pop()
            node = graph.by_name.get(value)
            if node is None or (value in seen and not ready):
                continue
            if ready:
                order.append(node)
                continue
            seen.add(value)
            stack.append((value, True))
            stack.extend((source, False) for source in reversed(node.inputs))
    return order


def _label(node: Node) -> str:
    """What a node is called after."""
    if node.op == "clip" and node.attrs.float("lo") == 0:
        return {math.inf: "relu", 6.0: "relu6"}.get(node.attrs.float("hi"), "clip")
    return "affine" if node.op in WEIGHTED else node.op


def _names(graph: Graph, taken: frozenset[str], avoid: frozenset[str] = frozenset()) -> dict[str, str]:
    """Old → new names of all values; inputs keep theirs, and no node gets one of `taken` or `avoid`."""
    names = {port.name: port.name for port in graph.inputs}
    used = {*names.values(), *taken, *avoid}
    for node in graph.nodes:
        # An affine that became a layer has no module of its own.
        if node.op in WEIGHTED and not _made_here(node):
            names[node.name] = node.name
            used.add(node.name)
    count: Counter[str] = Counter()
    for node in _ordered(graph):
        if node.name in names:
            continue
        label = _label(node)
        while (name := f"{label}.{count[label]}") in used:
            count[label] += 1
        names[node.name] = name
        used.add(name)
    return names


def _made_here(node: Node) -> bool:
    """Whether a depthwise layer was an affine in the source."""
    return node.op == "conv2d" and MADE_LAYER in node.origin


def _rename(graph: Graph, names: Mapping[str, str], ports: Mapping[str, str]) -> Graph:
    builder = GraphBuilder(graph.name, graph.level)
    new = dict(names)
    for port in graph.inputs:
        new[port.name] = builder.input(ports.get(port.name, port.name), port.type, port.grid)
    for node in _ordered(graph):
        consts = {role: graph.consts[name] for role, name in node.consts}
        inputs = [new[value] for value in node.inputs]
        builder.add(node.op, inputs, name=new[node.name], consts=consts, attrs=node.attrs, origin=node.origin)
    for out in graph.outputs:
        builder.output(out.name, new[out.value], out.grid)
    return builder.build(notes=graph.notes)

"""split-tail: what the host computes on the outputs leaves the graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from qcompile.errors import UnsupportedOpError
from qcompile.ir import MOVEMENT, WEIGHTED, Aspect, Graph, GraphBuilder, Node
from qcompile.pm.base import ON_FLOAT, Exact, Levels, Pass, PassContext, PassResult, Report

_FOLLOWS_OUTPUT = MOVEMENT | {"unary", "softmax"}
"""What may stand between a function and the outputs for it to be the host's."""


@dataclass(frozen=True)
class SplitTail(Pass):
    """Move softmax, and functions that feed only outputs, with all that follows into the host's output
    function.

    Before:  outputs: p = %s                After:  outputs: fc = %fc       tail: %s = softmax(fc)
             %s = softmax(%fc)

    Reshapes and transposes that only prepare values for the tail go with it.
    """

    name: ClassVar[str] = "split-tail"
    levels: ClassVar[Levels] = ON_FLOAT
    changes = Aspect.STRUCTURE
    preserves = Exact()

    def run(self, graph: Graph, ctx: PassContext) -> PassResult:
        hosted = _hosted(graph)
        if not hosted or graph.tail is not None:
            return PassResult(graph, Report(refused=("nothing is left to the host",) if not hosted else ()))
        return PassResult(_split(graph, hosted), Report(done=tuple(sorted(hosted))))


def _hosted(graph: Graph) -> frozenset[str]:
    """Names of the nodes that the host computes."""
    only_outputs: set[str] = set()
    for node in reversed(graph.nodes):
        users = graph.users[node.name]
        if node.op in _FOLLOWS_OUTPUT and all(user.name in only_outputs for user in users):
            only_outputs.add(node.name)
    found: set[str] = set()
    for node in graph.nodes:
        begins = node.op == "softmax" or (node.op == "unary" and node.name in only_outputs)
        if not begins and not found.intersection(node.inputs):
            continue
        if node.op in WEIGHTED:
            first = next(n for n in graph.nodes if n.name in found and n.op == "softmax")
            raise UnsupportedOpError(
                f"a softmax inside of the network is not supported: {node.op} {node.name!r} reads its result",
                node=first.name,
                hint="softmax is supported as the last computation, on the host",
            )
        found.add(node.name)
    for node in reversed(graph.nodes):
        users = graph.users[node.name]
        ready = users and all(user.name in found for user in users) and node.name not in graph.output_values
        if ready and node.op in ("reshape", "transpose"):
            found.add(node.name)
    return frozenset(found)


def _split(graph: Graph, hosted: frozenset[str]) -> Graph:
    shown = {out.value: out.name for out in reversed(graph.outputs) if out.value not in hosted}
    public = {out.name for out in graph.outputs}
    main, tail = GraphBuilder(graph.name, graph.level), GraphBuilder(f"{graph.name}.tail", graph.level)
    for port in graph.inputs:
        main.input(port.name, port.type, port.grid)
    needed = {v for node in graph.nodes if node.name in hosted for v in node.inputs if v not in hosted}
    for node in graph.nodes:
        if node.name not in hosted:
            main.copy(graph, node)
    rename: dict[str, str] = {}
    for value in (*(port.name for port in graph.inputs), *(node.name for node in graph.nodes)):
        if value in needed or value in shown:
            name = shown.get(value, value)
            while value not in shown and name in public:
                # A public name belongs to the output of that name.
                name = f"{name}.in"
            main.output(name, value)
            rename[value] = tail.input(name, graph.type_of(value))
    for node in graph.nodes:
        if node.name in hosted:
            rename[node.name] = _copied(graph, node, tail, rename)
    for out in graph.outputs:
        tail.output(out.name, rename[out.value])
    built = main.build(notes=graph.notes)
    return replace(built, tail=tail.build())


def _copied(graph: Graph, node: Node, tail: GraphBuilder, rename: Mapping[str, str]) -> str:
    consts = {role: graph.consts[name] for role, name in node.consts}
    inputs = [rename[value] for value in node.inputs]
    return tail.add(node.op, inputs, name=node.name, consts=consts, attrs=node.attrs, origin=node.origin)

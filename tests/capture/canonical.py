"""The canonical form of a captured graph, for comparing captures."""

from __future__ import annotations

from typing import Any

from qcompile import pipelines
from qcompile.ir import Graph
from qcompile.pm.base import PassContext
from qcompile.pm.manager import PassManager
from qcompile.pm.registry import find_pass
from targets.reference.target import REFERENCE


def canonical(graph: Graph) -> Graph:
    """The graph behind the default canonical passes, every promise checked."""
    return PassManager([find_pass(name)() for name in pipelines.CANONICALIZE]).run(graph, PassContext(REFERENCE)).graph


def content(graph: Graph | None) -> list[Any]:
    """Names, order, types, attributes and constants to the last bit; inputs are numbered, outputs unnamed."""
    if graph is None:
        return []
    inputs = {port.name: f"input {i}" for i, port in enumerate(graph.inputs)}
    found: list[Any] = [
        (
            node.name,
            node.op,
            tuple(inputs.get(value, value) for value in node.inputs),
            node.attrs,
            node.type,
            tuple((role, graph.consts[name].tobytes()) for role, name in node.consts),
        )
        for node in graph.nodes
    ]
    shown = [inputs.get(out.value, out.value) for out in graph.outputs]
    return [*found, shown, content(graph.tail)]

"""Which nodes run in one loop nest: an anchor and the requant that consumes its accumulators."""

from __future__ import annotations

from qcompile.ir import Graph
from qcompile.target.program import Kernel

ANCHORS = frozenset({"conv2d", "linear", "sum_pool", "reduce_sum", "mul"})
"""Operators whose int32 sums never go to memory when a requant follows them."""


def form_kernels(graph: Graph) -> tuple[Kernel, ...]:
    """The kernels of an integer graph, in execution order."""
    kernels: list[Kernel] = []
    taken: set[str] = set()
    for node in graph.nodes:
        if node.name in taken:
            continue
        nodes = [node]
        user = graph.sole_user(node.name) if node.op in ANCHORS else None
        if user is not None and user.op == "requant" and user.type.shape == node.type.shape:
            nodes.append(user)
            taken.add(user.name)
        inside = {n.name for n in nodes}
        inputs = tuple(dict.fromkeys(v for n in nodes for v in n.inputs if v not in inside))
        kernels.append(Kernel(nodes[-1].name, tuple(nodes), inputs))
    # A fused requant may read a value that is computed between its anchor and itself.
    return _in_order(graph, kernels)


def _in_order(graph: Graph, kernels: list[Kernel]) -> tuple[Kernel, ...]:
    ready = {port.name for port in graph.inputs}
    ordered: list[Kernel] = []
    waiting = list(kernels)
    while waiting:
        for kernel in waiting:
            if set(kernel.inputs) <= ready:
                break
        ordered.append(kernel)
        waiting.remove(kernel)
        ready.add(kernel.name)
    return tuple(ordered)

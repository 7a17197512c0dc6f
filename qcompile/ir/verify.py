"""The verifier: everything that must hold of a graph, whoever built it."""

from __future__ import annotations

import numpy as np

from qcompile.errors import GraphError
from qcompile.ir.graph import Graph
from qcompile.ir.ops import FLOAT, LEVELS, OPS
from qcompile.ir.types import int_range, storage


def verify(graph: Graph) -> None:
    """Raise GraphError where the graph breaks a rule.

    Checked: level and op legality, definition before use, unique names, attributes and constants against the op
    table, inferred types, constants within their range and finite, outputs that exist, grids on the integer level.
    """
    if graph.level not in LEVELS:
        raise GraphError(f"unknown level {graph.level!r}")
    types = {}
    for port in graph.inputs:
        if port.name in types:
            raise GraphError(f"value {port.name!r} is defined twice")
        types[port.name] = port.type
        if (port.grid is None) == (graph.level != FLOAT):
            raise GraphError(f"input {port.name!r} of a {graph.level} graph: grid is {port.grid}")
    for node in graph.nodes:
        op = OPS.get(node.op)
        if op is None or graph.level not in op.levels:
            raise GraphError(f"operator {node.op!r} is not legal on the {graph.level} level", node=node.name)
        if node.name in types:
            raise GraphError(f"value {node.name!r} is defined twice")
        if missing := [value for value in node.inputs if value not in types]:
            raise GraphError(f"reads {missing[0]!r}, which is not defined before it", node=node.name)
        consts = {}
        for role, name in node.consts:
            if name not in graph.consts:
                raise GraphError(f"constant {name!r} is missing", node=node.name)
            consts[role] = graph.consts[name]
        if op.check(len(node.inputs), consts, node.attrs) != node.attrs:
            raise GraphError(f"{node.op} has incomplete attributes", node=node.name)
        inferred = op.infer([types[value] for value in node.inputs], node.attrs, consts)
        if inferred != node.type:
            raise GraphError(f"has type {node.type}, but {node.op} yields {inferred}", node=node.name)
        _verify_consts(node.name, graph.level, consts)
        if graph.level != FLOAT and node.type.dtype == "f32":
            raise GraphError("a floating-point value on the integer level", node=node.name)
        if node.op == "requant":
            lo, hi = int_range(node.type.dtype)
            if not lo <= node.attrs.int("lo") <= node.attrs.int("hi") <= hi:
                raise GraphError(f"requant bounds leave the range of {node.type.dtype}", node=node.name)
        types[node.name] = node.type
    for out in graph.outputs:
        if out.value not in types:
            raise GraphError(f"output {out.name!r} shows {out.value!r}, which does not exist")
        if (out.grid is None) == (graph.level != FLOAT):
            raise GraphError(f"output {out.name!r} of a {graph.level} graph: grid is {out.grid}")
    if graph.tail is not None:
        if [p.name for p in graph.tail.inputs] != [o.name for o in graph.outputs]:
            raise GraphError("the host's output function does not take this graph's outputs")
        verify(graph.tail)


def _verify_consts(node: str, level: str, consts: dict[str, np.ndarray]) -> None:
    for role, array in consts.items():
        if level == FLOAT:
            if array.dtype != storage("f32") or not np.isfinite(array).all():
                raise GraphError(f"constant {role!r} must be finite float32, not {array.dtype}", node=node)
        elif array.dtype.kind not in "iu":
            raise GraphError(f"constant {role!r} must be integers, not {array.dtype}", node=node)

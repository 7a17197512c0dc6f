"""drop-noop-movement: movement that moves nothing disappears, and movements in a row become one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from passes.canonicalize.rewrite import sole_producer, until_stable, without
from qcompile.ir import Aspect, Graph, GraphBuilder, Node, rebuild
from qcompile.ir.ops import AttrValue
from qcompile.pm.base import ON_FLOAT, Exact, Levels, Pass, PassContext, PassResult, Report


@dataclass(frozen=True)
class DropNoopMovement(Pass):
    """Drop movement that keeps every element in place, and merge chains of reshape, transpose or slice.

    Before:  %a = reshape(%x), %b = reshape(%a)     After:  %b = reshape(%x)
    Before:  %c = concat(%x)                        After:  %x
    Before:  %t = transpose(%x) that only moves     After:  %t = reshape(%x)
             dimensions of size 1
    """

    name: ClassVar[str] = "drop-noop-movement"
    levels: ClassVar[Levels] = ON_FLOAT
    changes = Aspect.STRUCTURE
    preserves = Exact()

    def run(self, graph: Graph, ctx: PassContext) -> PassResult:
        done: list[str] = []

        def step(graph: Graph) -> Graph | None:
            for node in graph.nodes:
                if _is_noop(graph, node):
                    done.append(node.name)
                    return without(graph, node)
                if simpler := _simpler(graph, node):
                    done.append(node.name)
                    return _replace(graph, node, *simpler)
            return None

        return PassResult(until_stable(graph, step), Report(done=tuple(done)))


def _replace(graph: Graph, node: Node, op: str, source: str, attrs: Mapping[str, AttrValue]) -> Graph:
    def visit(b: GraphBuilder, n: Node, rename: Mapping[str, str]) -> str | None:
        if n is not node:
            return None
        return b.add(op, [rename[source]], name=node.name, attrs=attrs, origin=(*node.origin, "drop-noop-movement"))

    return rebuild(graph, visit)


def _is_noop(graph: Graph, node: Node) -> bool:
    x = graph.type_of(node.inputs[0]) if node.inputs else None
    if x != node.type:
        return False
    match node.op:
        case "reshape" | "slice" | "pad":
            return True
        case "concat":
            return len(node.inputs) == 1
        case "transpose":
            return node.attrs.ints("perm") == tuple(range(node.type.rank))
        case "resize":
            rows, cols = node.attrs.ints("rows"), node.attrs.ints("cols")
            return rows == tuple(range(len(rows))) and cols == tuple(range(len(cols)))
    return False


def _simpler(graph: Graph, node: Node) -> tuple[str, str, dict[str, AttrValue]] | None:
    """Operator, input and attributes of a simpler node with the same result."""
    if node.op not in ("reshape", "transpose", "slice"):
        return None
    source = node.inputs[0]
    x = graph.type_of(source)
    if node.op == "transpose":
        moved = [p for p in node.attrs.ints("perm") if x.shape[p] != 1]
        if moved == sorted(moved):
            return "reshape", source, {"shape": node.type.shape}
    first = graph.by_name.get(source)
    # A reshape costs nothing, so one that others read too may be passed by.
    if first is None or first.op != node.op or (node.op != "reshape" and sole_producer(graph, source) is None):
        return None
    if node.op == "reshape":
        return "reshape", first.inputs[0], {"shape": node.type.shape}
    if node.op == "transpose":
        inner = first.attrs.ints("perm")
        return "transpose", first.inputs[0], {"perm": tuple(inner[p] for p in node.attrs.ints("perm"))}
    return "slice", first.inputs[0], _sliced_twice(first, node)


def _sliced_twice(first: Node, second: Node) -> dict[str, AttrValue]:
    starts: list[int] = []
    ends: list[int] = []
    steps: list[int] = []
    inner = [first.attrs.ints(key) for key in ("starts", "steps")]
    outer = [second.attrs.ints(key) for key in ("starts", "steps")]
    for i, size in enumerate(second.type.sample):
        step = int(inner[1][i]) * int(outer[1][i])
        start = int(inner[0][i]) + int(outer[0][i]) * int(inner[1][i])
        starts.append(start)
        ends.append(start + (size - 1) * step + 1)
        steps.append(step)
    return {"starts": tuple(starts), "ends": tuple(ends), "steps": tuple(steps)}

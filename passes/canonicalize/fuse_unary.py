"""fuse-unary: elementwise functions of one value become one function."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from passes.canonicalize.rewrite import is_layer, scalar, sole_producer, until_stable
from passes.structure import ACCUMULATING
from qcompile.exec import unary
from qcompile.ir import Aspect, Graph, GraphBuilder, Node, rebuild
from qcompile.pm.base import ON_FLOAT, Close, Levels, Pass, PassContext, PassResult, Report


class _Function(NamedTuple):
    """An elementwise function of a value, and whether it holds a `unary`."""

    source: str
    expr: str
    costly: bool


@dataclass(frozen=True)
class FuseUnary(Pass):
    """Fuse chains and diamonds of elementwise functions over one value into a single `unary`.

    Before:  %s = unary(%x) {expr="(sigmoid x)"}      After:  %y = unary(%x) {expr="(mul x (sigmoid x))"}
             %y = mul(%x, %s)

    A clip or prelu behind a layer or an addition stays: it is free there.  So does an affine behind a layer,
    which fold-affine folds into its weights.
    """

    name: ClassVar[str] = "fuse-unary"
    levels: ClassVar[Levels] = ON_FLOAT
    changes = Aspect.STRUCTURE
    preserves = Close(1e-4)

    def run(self, graph: Graph, ctx: PassContext) -> PassResult:
        done: list[str] = []

        def step(graph: Graph) -> Graph | None:
            for node in graph.nodes:
                if found := _fused(graph, node):
                    done.append(f"{node.name}: {found.expr}")
                    return _replace(graph, node, found)
            return None

        return PassResult(until_stable(graph, step), Report(done=tuple(done)))


def _replace(graph: Graph, node: Node, function: _Function) -> Graph:
    def visit(b: GraphBuilder, n: Node, rename: Mapping[str, str]) -> str | None:
        if n is not node:
            return None
        origin = (*node.origin, "fuse-unary")
        attrs = {"expr": function.expr}
        return b.add("unary", [rename[function.source]], name=node.name, attrs=attrs, origin=origin)

    return rebuild(graph, visit)


def _own(graph: Graph, node: Node) -> str | None:
    """The expression of an elementwise function with one operand; None where it varies by position."""
    match node.op:
        case "unary":
            return node.attrs.str("expr")
        case "clip":
            return unary.clip(node.attrs.float("lo"), node.attrs.float("hi"))
        case "prelu":
            slope = scalar(graph, node, "slope")
            return None if slope is None else unary.leaky(slope)
        case "affine":
            scale, shift = scalar(graph, node, "scale"), scalar(graph, node, "shift")
            return None if scale is None or shift is None else unary.affine(scale, shift)
    return None


def _options(graph: Graph, value: str) -> list[_Function]:
    """The value as a function of itself, of its operand, and so on back while nothing else reads it."""
    found = [_Function(value, "x", False)]
    while (node := sole_producer(graph, found[-1].source)) is not None:
        own = _own(graph, node)
        before = sole_producer(graph, node.inputs[0]) if own else None
        if own is None or (node.op in ("clip", "prelu") and before is not None and before.op in ACCUMULATING):
            break
        if node.op == "affine" and is_layer(before):
            break
        last = found[-1]
        costly = last.costly or node.op == "unary"
        found.append(_Function(node.inputs[0], unary.compose(last.expr, own), costly))
    return found


def _fused(graph: Graph, node: Node) -> _Function | None:
    """The fused function at a node, or None where there is nothing to fuse."""
    if node.op in ("add", "sub", "mul"):
        return _diamond(graph, node)
    own = _own(graph, node)
    if own is None:
        return None
    chain = [f for f in _options(graph, node.inputs[0])[1:] if f.costly or node.op == "unary"]
    if not chain:
        return None
    return _Function(chain[-1].source, unary.compose(own, chain[-1].expr), True)


def _diamond(graph: Graph, node: Node) -> _Function | None:
    left, right = node.inputs
    if left == right:
        return _Function(left, unary.call(node.op, "x", "x"), True)
    by_source = {f.source: f for f in _options(graph, right)}
    for a in reversed(_options(graph, left)):
        b = by_source.get(a.source)
        if b is not None and graph.type_of(a.source) == node.type:
            return _Function(a.source, unary.call(node.op, a.expr, b.expr), True)
    return None

"""fold-constants: chains of operations with constants become one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from passes.canonicalize.rewrite import real, sole_producer, until_stable, without
from qcompile.ir import Aspect, Graph, GraphBuilder, Node, rebuild
from qcompile.pm.base import ON_FLOAT, Close, Levels, Pass, PassContext, PassResult, Report


@dataclass(frozen=True)
class FoldConstants(Pass):
    """Merge an affine into the affine before it, and drop one that changes nothing.

    Before:  %a = affine(%x, s, t)      After:  %b = affine(%x, s·u, t·u + v)
             %b = affine(%a, u, v)
    """

    name: ClassVar[str] = "fold-constants"
    levels: ClassVar[Levels] = ON_FLOAT
    changes = Aspect.STRUCTURE | Aspect.WEIGHTS
    preserves = Close(1e-5)

    def run(self, graph: Graph, ctx: PassContext) -> PassResult:
        done: list[str] = []

        def step(graph: Graph) -> Graph | None:
            for node in graph.nodes:
                if node.op == "affine" and (merged := _merge(graph, node)):
                    done.append(node.name)
                    return merged
            return None

        return PassResult(until_stable(graph, step), Report(done=tuple(done)))


def _merge(graph: Graph, node: Node) -> Graph | None:
    scale, shift = real(graph, node, "scale"), real(graph, node, "shift")
    if (scale == 1).all() and (shift == 0).all():
        return without(graph, node)
    first = sole_producer(graph, node.inputs[0])
    if first is None or first.op != "affine":
        return None
    inner_scale, inner_shift = real(graph, first, "scale"), real(graph, first, "shift")
    consts = {
        "scale": (inner_scale * scale).astype(np.float32),
        "shift": (inner_shift * scale + shift).astype(np.float32),
    }

    def visit(b: GraphBuilder, n: Node, rename: Mapping[str, str]) -> str | None:
        if n is not node:
            return None
        origin = (*node.origin, "fold-constants")
        return b.add("affine", [rename[first.inputs[0]]], name=node.name, consts=consts, origin=origin)

    return rebuild(graph, visit)

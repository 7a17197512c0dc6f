"""merge-clips: two clips in a row become one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from passes.canonicalize.rewrite import sole_producer, until_stable, without
from qcompile.ir import Aspect, Graph, GraphBuilder, Node, rebuild
from qcompile.pm.base import ON_FLOAT, Exact, Levels, Pass, PassContext, PassResult, Report


@dataclass(frozen=True)
class MergeClips(Pass):
    """Merge a clip into the clip before it, and drop one without bounds.

    Before:  %a = clip(%x) {lo=0}       After:  %b = clip(%x) {lo=0, hi=6}
             %b = clip(%a) {hi=6}
    """

    name: ClassVar[str] = "merge-clips"
    levels: ClassVar[Levels] = ON_FLOAT
    changes = Aspect.STRUCTURE
    preserves = Exact()

    def run(self, graph: Graph, ctx: PassContext) -> PassResult:
        done: list[str] = []

        def step(graph: Graph) -> Graph | None:
            for node in graph.nodes:
                if node.op == "clip" and (merged := _merge(graph, node)):
                    done.append(node.name)
                    return merged
            return None

        return PassResult(until_stable(graph, step), Report(done=tuple(done)))


def _merge(graph: Graph, node: Node) -> Graph | None:
    low, high = node.attrs.float("lo"), node.attrs.float("hi")
    if low == -math.inf and high == math.inf:
        return without(graph, node)
    first = sole_producer(graph, node.inputs[0])
    if first is None or first.op != "clip":
        return None
    # clip(clip(x, a, b), lo, hi) limits to the first interval clipped by the second.
    bounds = {key: min(max(first.attrs.float(key), low), high) for key in ("lo", "hi")}

    def visit(b: GraphBuilder, n: Node, rename: Mapping[str, str]) -> str | None:
        if n is not node:
            return None
        origin = (*first.origin, *node.origin, "merge-clips")
        return b.add("clip", [rename[first.inputs[0]]], name=node.name, attrs=bounds, origin=origin)

    return rebuild(graph, visit)

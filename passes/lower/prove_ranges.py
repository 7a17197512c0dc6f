"""prove-ranges: no accumulator leaves 32 bits and no product 64, from the real weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from qcompile.ir import Graph
from qcompile.pm.base import ON_INT, Levels, Pass, PassContext, PassResult, Report
from qcompile.pm.facts import BOUNDS, Bounds
from qcompile.semantics import ranges


@dataclass(frozen=True)
class ProveRanges(Pass):
    """Bound every value by interval arithmetic; raise OverflowProofError with the layer's name where it may overflow.

    Source: integer-semantics rule 4; the bound of an accumulator holds for any order of summation.
    """

    name: ClassVar[str] = "prove-ranges"
    levels: ClassVar[Levels] = ON_INT
    provides = (BOUNDS,)

    def run(self, graph: Graph, ctx: PassContext) -> PassResult:
        found = ranges.prove(graph)
        table = {value: Bounds(lo, hi) for value, (lo, hi) in found.items()}
        widest = max((max(abs(lo), abs(hi)) for lo, hi in found.values()), default=0)
        report = Report(done=(f"every one of {len(found)} values fits; the largest magnitude is {widest}",))
        return PassResult(graph.with_notes(graph.notes.with_table(BOUNDS, table)), report)

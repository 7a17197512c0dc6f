"""Give every layer the same precision, except where it is pinned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from passes.plan.pins import check_supported, check_ties, pinned, protected
from passes.structure import Structure
from qcompile.ir import Aspect, Graph
from qcompile.pm.base import ON_FLOAT, Exact, Pass, PassContext, PassResult, Report
from qcompile.pm.facts import BITS, BitChoice
from qcompile.units import format_bits


@dataclass(frozen=True)
class UniformBits(Pass):
    """Give all layers `w` weight bits and `a` activation bits.

    Before:  a canonical float graph        After:  note bits

    Pins (`ctx.data["pins"]`, regex → (w, a)) come first, then the protection list (`ctx.data["protect"]`, regexes:
    the widest bits); layers that read the same values as a pinned one
    take its activation bits.
    """

    name: ClassVar[str] = "uniform-bits"
    levels = ON_FLOAT
    provides = (BITS,)
    changes = Aspect.NOTHING
    preserves = Exact()

    w: int = 8
    a: int = 8

    def run(self, graph: Graph, ctx: PassContext) -> PassResult:
        """Raises UsageError where a pin does not fit or the target lacks a precision."""
        structure = Structure(graph)
        pins = {
            **protected(structure.layers, ctx.data.get("protect") or (), ctx.target),
            **pinned(structure.layers, ctx.data.get("pins") or {}),
        }
        ties = tuple(structure.tied().values())
        check_ties(ties, pins, "pinned")
        shared = {layer: pins[k][1] for tie in ties for k in tie if k in pins for layer in tie}
        plan = {k: pins.get(k, (self.w, shared.get(k, self.a))) for k in structure.layers}
        check_supported(plan, ctx.target)
        notes = graph.notes.with_table(BITS, {layer: BitChoice(*bits) for layer, bits in plan.items()})
        return PassResult(
            graph.with_notes(notes), Report(done=tuple(f"{k}: {format_bits(b)}" for k, b in plan.items()))
        )

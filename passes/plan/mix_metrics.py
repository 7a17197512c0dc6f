"""mix-metrics: some layers judged by another estimator than the rest."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from passes.plan.pins import matching
from qcompile.errors import DataError
from qcompile.ir import Graph
from qcompile.pm.base import ON_FLOAT, Levels, Pass, PassContext, PassResult, Report
from qcompile.pm.facts import LOSS, Bits, LossTable


@dataclass(frozen=True)
class MixMetrics(Pass):
    """Replace the predicted losses of some layers by those of another estimator, brought to the same scale.

    MixDQ judges some layers by one metric and the rest by another, in separate programs.  Here one program decides, so
    the other metric's losses of a group are multiplied by one number, which makes their geometric mean over all
    choices of the group what it was: the other metric says how loss is distributed inside the group, the first one how
    much of it there is.  `ctx.data["metrics"]` holds (regex over layer names, estimator, its LOSS table); the last
    match wins.
    """

    name: ClassVar[str] = "mix-metrics"
    levels: ClassVar[Levels] = ON_FLOAT
    requires = (LOSS,)
    provides = (LOSS,)

    def run(self, graph: Graph, ctx: PassContext) -> PassResult:
        """Raises UsageError where a pattern matches no layer, DataError where a group has nothing to compare."""
        losses = dict(graph.notes[LOSS])
        layers = [node.name for node in graph.nodes if node.name in losses]
        groups: Sequence[tuple[str, str, Mapping[str, LossTable]]] = ctx.data.get("metrics", ())
        taken: dict[str, int] = {}
        for number, (pattern, _, _) in enumerate(groups):
            taken.update(dict.fromkeys(matching(layers, pattern, "metric"), number))
        scales = []
        for number, (pattern, estimator, table) in enumerate(groups):
            members = [layer for layer in layers if taken.get(layer) == number]
            scale = common_scale([(graph.notes[LOSS][k].loss, table[k].loss) for k in members], pattern)
            losses.update({
                k: LossTable({b: scale * v for b, v in table[k].loss.items()}) for k in members
            })  # fmt: skip
            scales.append({"pattern": pattern, "estimator": estimator, "layers": members, "scale": scale})
        notes = graph.notes.with_table(LOSS, losses)
        done = tuple(f"{len(row['layers'])} layers by {row['estimator']}" for row in scales)  # type: ignore[arg-type]
        return PassResult(graph.with_notes(notes), Report(done=done, facts={"groups": scales}))


def common_scale(rows: Sequence[tuple[Mapping[Bits, float], Mapping[Bits, float]]], group: str) -> float:
    """The factor that brings the geometric mean of the second losses to that of the first."""
    ratios = [
        math.log(own[bits] / other[bits])
        for own, other in rows
        for bits in own
        if own[bits] > 0 and 0 < other.get(bits, 0.0) < math.inf and own[bits] < math.inf
    ]
    if rows and not ratios:
        raise DataError(f"the two metrics of {group!r} have no positive loss in common, so they cannot be compared")
    return math.exp(math.fsum(ratios) / len(ratios)) if ratios else 1.0

"""confirm-plan: the chosen plan and the best uniform one, measured again with the weights they would really get."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from passes.plan.select_plan import Plan, choose
from passes.plan.simulate import Simulator
from qcompile.errors import PassContractError
from qcompile.ir import Graph
from qcompile.pm.base import ON_FLOAT, Levels, Pass, PassContext, PassResult, Report
from qcompile.pm.facts import BITS, CANDIDATES, RANGES, Candidates, Rounded


@dataclass(frozen=True)
class ConfirmPlan(Pass):
    """Measure finalists on held-out samples with the weights `round-weights` gives them, and note the better one.

    `select-plan` compares plans with weights rounded layer by layer on their own.  `round-weights` makes up in later
    layers for what earlier ones lose, and plans gain by that unequally: one whose loss lies in its last layer gains
    nothing.  `ctx.data["finalists"]` holds (plan, rounded weights) pairs; the first one, which was selected, yields
    only to one that is surely better now (see `select_plan.choose`).
    """

    name: ClassVar[str] = "confirm-plan"
    levels: ClassVar[Levels] = ON_FLOAT
    requires = (RANGES,)
    provides = (BITS,)
    needs = ("holdout",)

    def run(self, graph: Graph, ctx: PassContext) -> PassResult:
        finalists: Sequence[tuple[Plan, Mapping[str, Rounded]]] = ctx.data.get("finalists", ())
        if not finalists or ctx.holdout is None:
            raise PassContractError("confirm-plan needs finalists and held-out samples")
        measured = []
        for done, (plan, rounded) in enumerate(finalists):
            ctx.progress(self.name, done, len(finalists))
            noted = with_rounded(graph, rounded)
            measured.append(Simulator(noted, graph.notes[RANGES], ctx.holdout()).measure(plan))
        chosen = choose(measured, [0])
        rows = [{"loss": found.loss, "agreement": found.agreement} for found in measured]
        said = (
            f"finalist {chosen} of {len(rows)} loses {rows[chosen]['loss']:.3g} on held-out data, rounded as it will be"
        )
        report = Report(done=(said,), facts={"chosen": chosen, "measured": rows})
        return PassResult(graph.with_notes(graph.notes.with_table(BITS, finalists[chosen][0])), report)


def with_rounded(graph: Graph, rounded: Mapping[str, Rounded]) -> Graph:
    """The graph, simulated with these weights; each layer at their bits only."""
    table = {layer: Candidates({given.bits: given}) for layer, given in rounded.items()}
    return graph.with_notes(graph.notes.with_table(CANDIDATES, table))

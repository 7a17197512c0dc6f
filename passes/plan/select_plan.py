"""select-plan: the planner's candidates, measured; the best one wins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from passes.plan.simulate import Measurement, Simulator
from passes.structure import Structure
from qcompile.errors import PassContractError
from qcompile.ir import Graph
from qcompile.pm.base import ON_FLOAT, Levels, Pass, PassContext, PassResult, Report
from qcompile.pm.facts import BITS, RANGES, BitChoice

Plan = Mapping[str, BitChoice]


@dataclass(frozen=True)
class SelectPlan(Pass):
    """Measure each candidate plan on held-out samples and note the one with the smallest loss.

    A predicted loss orders most plans rightly, but it has no last word: the solver's plan, its runner-ups and
    the uniform plans that keep the budgets (`ctx.data["candidates"]`, cheapest first) are run with fake
    quantisation on samples no analysis has seen, with the weights `round-candidates` has noted.  Of equal losses the
    first, so the cheaper, wins.  `ctx.data["measured"]`, a dict the pass adds to, keeps figures between runs.
    """

    name: ClassVar[str] = "select-plan"
    levels: ClassVar[Levels] = ON_FLOAT
    requires = (RANGES,)
    provides = (BITS,)
    needs = ("holdout",)

    def run(self, graph: Graph, ctx: PassContext) -> PassResult:
        candidates: Sequence[Plan] = ctx.data.get("candidates", ())
        if not candidates or ctx.holdout is None:
            raise PassContractError("select-plan needs candidate plans and held-out samples")
        layers = set(Structure(graph).layers)
        for plan in candidates:
            if set(plan) != layers:
                odd = sorted(set(plan) ^ layers)
                raise PassContractError(f"a candidate plan does not cover exactly the layers: {', '.join(odd)}")
        known: dict[tuple[tuple[str, int, int], ...], Measurement] = ctx.data.get("measured", {})
        keys = [tuple((layer, plan[layer].w, plan[layer].a) for layer in sorted(plan)) for plan in candidates]
        simulator = None
        for done, (key, plan) in enumerate(zip(keys, candidates, strict=True)):
            ctx.progress(self.name, done, len(candidates))
            if key not in known:
                simulator = simulator or Simulator(graph, graph.notes[RANGES], ctx.holdout())
                known[key] = simulator.measure(plan)
        measured = [known[key] for key in keys]
        chosen = min(range(len(measured)), key=lambda i: measured[i].loss)  # min keeps the first of equals
        table = [{"loss": found.loss, "agreement": found.agreement} for found in measured]
        report = Report(
            done=(f"candidate {chosen} of {len(candidates)} loses {measured[chosen].loss:.3g} on held-out data",),
            facts={"chosen": chosen, "measured": table},
        )
        return PassResult(graph.with_notes(graph.notes.with_table(BITS, candidates[chosen])), report)

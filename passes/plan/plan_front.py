"""plan-front: plans along the whole front of predicted loss over bytes or latency."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, ClassVar

from passes.plan import ilp
from passes.plan.infeasible import infeasible_error
from passes.plan.pairwise import Rows, loss_of, own_folded
from passes.plan.pareto import Corner, hull_bound, sweep, within
from passes.plan.search import Search
from passes.plan.tables import Tables
from qcompile.errors import UsageError
from qcompile.ir import Aspect, Graph
from qcompile.pm.base import ON_FLOAT, Exact, Pass, PassContext, PassResult, Report
from qcompile.pm.facts import COSTS, GROUPS, LOSS
from qcompile.units import parse_bytes, parse_latency

AXES = ("memory", "latency")


@dataclass(frozen=True)
class PlanFront(Pass):
    """Lay plans along the front, the most precise first; the graph stays as it is.

    One sweep of the price of a byte (or a second) gives the corners of the front's convex hull.  Between them evenly
    spaced budgets are filled in: by the integer program where losses add up, by local search from the corner below
    where choices interact (see `solve-bits`, whose inputs in `ctx.data` are taken here too).  Plans that a cheaper one
    is predicted to equal are left out.  `facts["front"]` lists plan, predicted figures and the Lagrangian bound of each
    budget (None where choices interact), by falling cost.

    Attributes:
        axis: "memory" or "latency".
        points: budgets between the cheapest plan and the one of least loss.
        latency, memory: limits every plan keeps.
        seconds: time limit of the solver for each budget.
    """

    name: ClassVar[str] = "plan-front"
    levels = ON_FLOAT
    requires = (LOSS, COSTS, GROUPS)
    changes = Aspect.NOTHING
    preserves = Exact()

    axis: str = "memory"
    points: int = 24
    latency: float | None = field(default=None, metadata={"parse": parse_latency})
    memory: int | None = field(default=None, metadata={"parse": parse_bytes})
    seconds: float = 20.0

    def run(self, graph: Graph, ctx: PassContext) -> PassResult:
        """Raises InfeasibleError where no plan keeps the limits."""
        if self.axis not in AXES:
            raise UsageError(f"plan-front has no axis {self.axis!r}", hint=f"axes are {', '.join(AXES)}")
        tables = Tables.read(graph, ctx)
        problem = ilp.Problem(tables.choices, tables.ties, tables.limits(self.latency, self.memory, None))
        front = _Front(problem, tables, self.axis, self.seconds, ctx.seed)
        plans = front.plans(self.points)
        if not plans:
            raise infeasible_error(problem, self.seconds, pins=bool(ctx.data.get("pins") or ctx.data.get("protect")))
        rows = [front.describe(plan) for plan in plans]
        report = Report(done=(f"{len(rows)} plans along {self.axis}",), facts={"axis": self.axis, "front": rows})
        return PassResult(graph, report)


class _Front:
    def __init__(self, problem: ilp.Problem, tables: Tables, axis: str, seconds: float, seed: int) -> None:
        self.problem, self.tables, self.axis, self.seconds, self.seed = problem, tables, axis, seconds, seed
        self.cost = tables.memory if axis == "memory" else tables.latency
        self.corners: Sequence[Corner] = sweep(problem, tables.loss, self.cost)

    def plans(self, points: int) -> list[ilp.Plan]:
        """By falling cost; none where no plan keeps the limits."""
        found = [corner.plan for corner in self.corners if self.problem.allows(corner.plan)]
        found += [plan for plan in self.tables.uniform_plans() if self.problem.allows(plan)]
        cheapest = self._solved(Fraction(0), self.cost, bounded=False)
        best = self._solved(Fraction(0), self.tables.loss, bounded=False)
        if cheapest is None or best is None:
            return []
        low, high = ilp.total(self.cost, cheapest), max(ilp.total(self.cost, plan) for plan in (best, *found))
        for i in range(points):
            plan = self._at(low + (high - low) * i / max(1, points - 1), [*found, cheapest, best])
            found += [] if plan is None else [plan]
        return _undominated([*found, best, cheapest], self.cost, self._loss)

    def _at(self, budget: Fraction, known: Sequence[ilp.Plan]) -> ilp.Plan | None:
        """The best plan of a budget."""
        if self.tables.pairs is None:
            return self._solved(budget, self.tables.loss, bounded=True)
        problem = self._limited(budget)
        starts = [plan for plan in known if problem.allows(plan)]
        if not starts:
            return self._solved(budget, self.tables.loss, bounded=True)
        rows = Rows.of(problem, self.tables.grids)
        folded, between = own_folded(rows, self.tables.loss, self.tables.pairs)
        search = Search(problem, rows, folded, between, (self.tables.latency, self.tables.memory), self.seed)
        return search.descend(min(starts, key=self._loss))

    def _solved(self, budget: Fraction, table: ilp.Table, *, bounded: bool) -> ilp.Plan | None:
        problem = self._limited(budget) if bounded else self.problem
        start = within(self.corners, problem)
        others = (self.cost, self.tables.loss)
        return ilp.lexicographic(problem, (table, *others), seconds=self.seconds, start=start).plan

    def _limited(self, budget: Fraction) -> ilp.Problem:
        limit = ilp.Limit(self.axis, budget, ((self.cost, Fraction(0)),))
        return ilp.Problem(self.problem.choices, self.problem.ties, (*self.problem.limits, limit))

    def _loss(self, plan: ilp.Plan) -> Fraction:
        return loss_of(self.tables.loss, self.tables.pairs, plan)

    def describe(self, plan: ilp.Plan) -> dict[str, Any]:
        bound = hull_bound(self.corners, ilp.total(self.cost, plan)) if self.tables.pairs is None else None
        figures = self.tables.predict(plan)
        return {"plan": plan, "predicted": figures, "bound": None if bound is None else float(bound)}


def _undominated(plans: Sequence[ilp.Plan], cost: ilp.Table, loss: Callable[[ilp.Plan], Fraction]) -> list[ilp.Plan]:
    """Plans no cheaper one is predicted to equal, by falling cost."""
    kept: list[ilp.Plan] = []
    least: Fraction | None = None
    for plan in sorted(plans, key=lambda plan: (ilp.total(cost, plan), loss(plan))):
        value = loss(plan)
        if least is None or value < least:
            kept.append(plan)
            least = value
    return kept[::-1]

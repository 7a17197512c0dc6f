"""Choose the precision of every layer by an integer program over predicted loss and measured cost."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from passes.plan import ilp
from passes.plan.closed_form import allocate
from passes.plan.infeasible import infeasible_error
from passes.plan.pairwise import Rows, loss_of
from passes.plan.pareto import hull_bound, sweep, within
from passes.plan.quadratic import minimise_quadratic
from passes.plan.tables import Tables
from qcompile.errors import InfeasibleError, UsageError
from qcompile.ir import Aspect, Graph
from qcompile.pm.base import ON_FLOAT, Exact, Pass, PassContext, PassResult, Report
from qcompile.pm.facts import BITS, COSTS, GROUPS, LOSS, BitChoice
from qcompile.units import format_bits, parse_bytes, parse_latency

_RUNNERS_UP = 3
METHODS = ("program", "closed-form")


@dataclass(frozen=True)
class SolveBits(Pass):
    """Give each layer the (weight, activation) bits of least total predicted loss that keep all limits.

    Before:  notes loss, costs, groups, and interactions where an estimator made them        After:  note bits

    Among plans of exactly equal loss the faster one is taken, then the smaller one.  With the note `interactions` the
    loss holds a term for each pair of choices, and the program is quadratic (see `passes.plan.quadratic`).  Further
    inputs in `ctx.data`: `fixed_seconds` (all other kernels), `latency_scale` (measured end to end over predicted; it
    multiplies layers and fixed part alike), `pins` (regex → (w, a)), `protect` (regexes: the widest bits),
    `pairs` (false: without the terms for pairs) and `activation_terms` (live sets, grid → bits → bytes; a grid no
    layer reads counts with its largest size).

    Attributes:
        latency: seconds, end to end.
        memory: bytes of packed weights.
        activations: bytes of activations that live at the same time.
        gap: relative distance to the bound at which the solver may stop.
        seconds: time limit of the solver.
        method: `program`, or `closed-form` for an answer without a solver (its gap is to the Lagrangian bound); where
            that finds none, the program is solved.
    """

    name: ClassVar[str] = "solve-bits"
    levels = ON_FLOAT
    requires = (LOSS, COSTS, GROUPS)
    provides = (BITS,)
    changes = Aspect.NOTHING
    preserves = Exact()

    latency: float | None = field(default=None, metadata={"parse": parse_latency})
    memory: int | None = field(default=None, metadata={"parse": parse_bytes})
    activations: int | None = field(default=None, metadata={"parse": parse_bytes})
    gap: float = 0.0
    seconds: float = 60.0
    method: str = "program"

    def run(self, graph: Graph, ctx: PassContext) -> PassResult:
        """Raises InfeasibleError where no plan keeps the limits, DataError where a loss is not a number."""
        if self.method not in METHODS:
            raise UsageError(f"solve-bits has no method {self.method!r}", hint=f"methods are {', '.join(METHODS)}")
        tables = Tables.read(graph, ctx)
        limits = tables.limits(self.latency, self.memory, self.activations)
        problem = ilp.Problem(tables.choices, tables.ties, limits)
        uniform = [plan for plan in tables.uniform_plans() if problem.allows(plan)]
        quick = instant_plans(problem, tables)
        if self.method == "closed-form" and (quick or uniform):
            solution, plans = _without_solver(problem, tables, [*quick, *uniform])
        else:
            solution, plans = self._solved(problem, tables, [*quick, *uniform], ctx.seed)
        if solution.plan is None:
            if solution.status == "infeasible":
                fixed = bool(ctx.data.get("pins") or ctx.data.get("protect"))
                raise infeasible_error(problem, self.seconds, pins=fixed)
            raise InfeasibleError(
                f"no plan was found in {self.seconds:g} s; there may be one",
                hint="give the solver more seconds",
            )
        candidates = [solution.plan, *plans]
        candidates += [plan for plan in uniform if plan not in candidates]
        choices = {layer: BitChoice(*bits) for layer, bits in solution.plan.items()}
        report = Report(
            done=tuple(f"{layer}: {format_bits(bits)}" for layer, bits in solution.plan.items()),
            facts={
                "solver": _solver_facts(solution, quadratic=tables.pairs is not None),
                "candidates": candidates,
                "uniform": uniform,
                "predicted": [tables.predict(plan) for plan in candidates],
            },
        )
        return PassResult(graph.with_notes(graph.notes.with_table(BITS, choices)), report)

    def _solved(
        self, problem: ilp.Problem, tables: Tables, starts: Sequence[ilp.Plan], seed: int
    ) -> tuple[ilp.Solution, list[ilp.Plan]]:
        """The solution, and the next best plans."""
        if tables.pairs is not None:
            found = minimise_quadratic(
                problem, tables.loss, tables.pairs, tie_break=(tables.latency, tables.memory), seconds=self.seconds,
                gap=self.gap, starts=starts, seed=seed,
            )  # fmt: skip
            # What the sum of single layers would choose is compared too: pairs are estimates.
            linear = ilp.minimise(problem, tables.loss, seconds=self.seconds, gap=self.gap).plan
            return found.solution, _distinct([*found.plans[1 : 1 + _RUNNERS_UP], linear], found.solution.plan)
        order = (tables.loss, tables.latency, tables.memory)
        best = min(starts, key=lambda plan: ilp.total(tables.loss, plan), default=None)
        solution = ilp.lexicographic(problem, order, seconds=self.seconds, gap=self.gap, start=best)
        runners: list[ilp.Plan] = []
        for _ in range(_RUNNERS_UP if solution.plan is not None else 0):
            known = [plan for plan in (solution.plan, *runners) if plan is not None]
            # The optimum took `solution.seconds`; runners-up are worth no more than that.
            limit = max(1.0, min(solution.seconds, self.seconds))
            further = replace(problem, excluded=tuple(known))
            plan = ilp.minimise(further, tables.loss, seconds=limit, gap=self.gap).plan
            if plan is None:
                break
            runners.append(plan)
        return solution, runners


def instant_plans(problem: ilp.Problem, tables: Tables) -> list[ilp.Plan]:
    """Plans that keep the limits, found without a solver: the closed form, and the corner of each limit's front."""
    rows = Rows.of(problem, tables.grids)
    plans = [allocate(problem, rows, tables.loss, tables.pairs, tables.memory)]
    for limit in problem.limits:
        if len(limit.rows) == 1:
            plans.append(within(sweep(problem, tables.loss, limit.rows[0][0]), problem))
    return _distinct(plans, None)


def _distinct(plans: Iterable[ilp.Plan | None], known: ilp.Plan | None) -> list[ilp.Plan]:
    found: list[ilp.Plan] = []
    for plan in plans:
        if plan is not None and plan != known and plan not in found:
            found.append(plan)
    return found


def _without_solver(
    problem: ilp.Problem, tables: Tables, plans: Sequence[ilp.Plan]
) -> tuple[ilp.Solution, list[ilp.Plan]]:
    """The best of the instant plans; its bound is the Lagrangian one of each limit, where losses only add up."""
    ranked = sorted(plans, key=lambda plan: loss_of(tables.loss, tables.pairs, plan))
    bounds = []
    for limit in problem.limits if tables.pairs is None else ():
        for table, fixed in limit.rows:
            bound = hull_bound(sweep(problem, tables.loss, table), limit.bound - fixed)
            bounds += [] if bound is None else [float(bound)]
    value = loss_of(tables.loss, tables.pairs, ranked[0])
    bound_found = min(max(bounds, default=-math.inf), float(value))
    status = "optimal" if bound_found == float(value) else "feasible"
    return ilp.Solution(status, ranked[0], value, bound_found), _distinct(ranked[1 : 1 + _RUNNERS_UP], ranked[0])


def _solver_facts(solution: ilp.Solution, *, quadratic: bool) -> dict[str, Any]:
    known = math.isfinite(solution.bound)
    return {
        "status": solution.status,
        "objective": float(solution.objective),
        "bound": solution.bound if known else None,
        "gap": solution.gap if known else None,
        "seconds": solution.seconds,
        "quadratic": quadratic,
    }

"""The integer program behind `solve-bits`: one choice for each layer, ties, and linear limits.

The only module that knows PuLP.  The solver works in floating point with tolerances; everything it returns is
checked again, and costs are compared, in exact rational arithmetic.

Three things keep the solver's tolerances (about 1e-9 here) out of the answer:

* each table is shifted by the smallest entry of every layer and scaled by what is left of its limit, so that
  all coefficients lie in [0, 1];
* a choice that alone exceeds what is left of a limit, or of the best known objective, is removed exactly, and
  the objective is scaled again where that shrank it (one absurdly bad choice would otherwise drown all
  differences);
* a plan that passes the solver but not the exact check is cut off and the program solved again.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import pulp

from qcompile.errors import InternalError
from qcompile.pm.facts import Bits

Plan = dict[str, Bits]
Table = Mapping[str, Mapping[Bits, Fraction]]
"""layer → choice → exact cost; a layer that is missing costs nothing."""

_SECONDS_AT_LEAST = 0.01
_TOLERANCE = 1e-9
_ATTEMPTS = 100
"""Plans the exact check may reject; each lies within the tolerance of a limit."""
_PATIENCE = 30
"""Rejections after which the limits are tightened by the tolerance, which costs the proof of optimality."""


def rational(number: float) -> Fraction:
    """The decimal number a float is written as, so that 3 · 0.001 + 0.0015 keeps a limit of 0.0045."""
    return Fraction(number) if isinstance(number, int) else Fraction(repr(float(number)))


def exact(table: Mapping[str, Mapping[Bits, float]]) -> Table:
    """The table in rational numbers."""
    return {layer: {bits: rational(cost) for bits, cost in row.items()} for layer, row in table.items()}


def total(table: Table, plan: Mapping[str, Bits]) -> Fraction:
    """What a plan costs."""
    return sum((table[layer][bits] for layer, bits in plan.items() if layer in table), Fraction(0))


@dataclass(frozen=True)
class Limit:
    """An upper bound on the largest of several linear costs (a single one for latency and memory).

    Attributes:
        name: for messages.
        bound: the limit, in the units of the rows.
        rows: tables with the constant each is to be added to.
    """

    name: str
    bound: Fraction
    rows: tuple[tuple[Table, Fraction], ...]

    def value(self, plan: Mapping[str, Bits]) -> Fraction:
        """What a plan takes of it."""
        return max(total(table, plan) + fixed for table, fixed in self.rows)

    def kept(self, plan: Mapping[str, Bits]) -> bool:
        return self.value(plan) <= self.bound


@dataclass(frozen=True)
class Problem:
    """What may be chosen.

    Attributes:
        choices: layer → the choices it offers, at least one.
        ties: layers in one tie take the same activation bits.
        limits: all of them are kept.
        excluded: plans that are not wanted again.
    """

    choices: Mapping[str, tuple[Bits, ...]]
    ties: tuple[tuple[str, ...], ...] = ()
    limits: tuple[Limit, ...] = ()
    excluded: tuple[Plan, ...] = ()

    def allows(self, plan: Mapping[str, Bits]) -> bool:
        """Whether a complete plan keeps the ties and all limits, exactly."""
        offered = all(plan[layer] in choices for layer, choices in self.choices.items())
        tied = all(len({plan[layer][1] for layer in tie}) <= 1 for tie in self.ties)
        return offered and tied and plan not in self.excluded and all(limit.kept(plan) for limit in self.limits)


@dataclass(frozen=True)
class Solution:
    """The answer to a program.

    Attributes:
        status: "optimal"; "feasible" where time ran out first; "infeasible"; "unknown" where time ran out
            without any plan.
        plan: the best plan found, or None.
        objective, bound: its exact cost, and what no plan can be below.
        seconds: time the solver took.
    """

    status: str
    plan: Plan | None = None
    objective: Fraction = Fraction(0)
    bound: float = -math.inf
    seconds: float = 0.0

    @property
    def gap(self) -> float:
        """Relative distance between objective and bound; 0 where they are equal."""
        return _gap(self.objective, self.bound)


def minimise(
    problem: Problem,
    objective: Table | Sequence[tuple[Table, Fraction]],
    *,
    seconds: float = 60.0,
    gap: float = 0.0,
    start: Plan | None = None,
) -> Solution:
    """The plan of the smallest cost.

    Args:
        problem: choices, ties and limits.
        objective: the cost, or several of which the largest counts.
        seconds: when to stop and return the best plan found so far.
        gap: relative distance to the bound at which a plan is good enough (of the cost above each layer's
            best).
        start: a known plan, returned where time runs out without a better one.

    Raises:
        InternalError: the solver failed in a way that is no answer.
    """
    rows = [(objective, Fraction(0))] if isinstance(objective, Mapping) else list(objective)
    goal = Limit("objective", Fraction(0), tuple(rows))
    best = start if start is not None and problem.allows(start) else None
    excluded = list(problem.excluded)
    begun = time.monotonic()
    bound = -math.inf
    solved = "optimal"
    for attempt in range(_ATTEMPTS):
        known = None if best is None else goal.value(best)
        choices = reduced(problem, goal, known)
        if choices is None:
            # With a known plan, nothing else can be as good; without one, nothing is possible.
            return _answer("infeasible" if best is None else "optimal", best, goal, math.inf, begun)
        floors = [floor_of(table, choices) + fixed for table, fixed in goal.rows]
        floor = max(floors)
        if known is not None and known == floor:
            return _answer("optimal", best, goal, float(floor), begun)
        scale = _span(goal, choices, floor) if known is None else known - floor
        left = max(begun + seconds - time.monotonic(), _SECONDS_AT_LEAST)
        margin = 0.0 if attempt < _PATIENCE else 8 * _TOLERANCE
        raw = _solve(problem, choices, goal, floor, scale, excluded, left, gap, margin)
        if margin:
            raw, solved = replace(raw, bound=-math.inf), "feasible"
        if raw.bound > -math.inf:
            bound = max(bound, float(floor) + raw.bound * float(scale))
        if raw.plan is None:
            if raw.status == "infeasible" and (best is not None or not margin):
                return _answer("infeasible" if best is None else solved, best, goal, math.inf, begun)
            return _answer("unknown" if best is None else "feasible", best, goal, bound, begun)
        if not replace(problem, excluded=tuple(excluded)).allows(raw.plan):
            # Within the solver's tolerance, but not within the limit; the bound it proved still holds.
            excluded.append(raw.plan)
            continue
        value = goal.value(raw.plan)
        improved = best is None or known is None or value < known
        best = raw.plan if improved else best
        done = min(value, known) if known is not None else value
        if raw.status != "optimal":
            return _answer("feasible", best, goal, bound, begun)
        # Once more with a finer scale, unless this one was as fine as the answer allows.
        if not improved or done - floor > scale / 8:
            within_gap = gap > 0 and _gap(done, bound) > _TOLERANCE
            return _answer("feasible" if within_gap else solved, best, goal, bound, begun)
    raise InternalError(f"the solver returned {_ATTEMPTS} plans that break the limits", hint="please report this")


def _gap(objective: Fraction, bound: float) -> float:
    distance = float(objective) - bound
    if distance <= 0:
        return 0.0
    gap = distance / abs(float(objective)) if objective else distance
    # The bound is a float of the solver's: below its last digits a difference means nothing.
    return gap if gap > 1e-12 else 0.0


def _answer(status: str, plan: Plan | None, goal: Limit, bound: float, begun: float) -> Solution:
    spent = time.monotonic() - begun
    if plan is None:
        return Solution(status, seconds=spent)
    value = goal.value(plan)
    # The solver's bound carries its rounding; it can never pass the objective of a plan that exists.
    return Solution(status, plan, value, min(bound, float(value)), spent)


def floor_of(table: Table, choices: Mapping[str, Sequence[Bits]]) -> Fraction:
    """What even the best choice of every layer costs."""
    return sum((min(table[k][b] for b in offered) for k, offered in choices.items() if k in table), Fraction(0))


def _span(goal: Limit, choices: Mapping[str, Sequence[Bits]], floor: Fraction) -> Fraction:
    """A first scale of the objective: its largest single excess."""
    excess = [
        table[layer][bits] - min(table[layer][b] for b in offered)
        for table, _ in goal.rows
        for layer, offered in choices.items()
        if layer in table
        for bits in offered
    ]
    return max(excess, default=Fraction(0)) or Fraction(1)


def reduced(problem: Problem, goal: Limit, known: Fraction | None) -> dict[str, tuple[Bits, ...]] | None:
    """The choices a plan within the limits, and no worse than a known one, can hold, or None."""
    choices = dict(problem.choices)
    limits = problem.limits if known is None else (*problem.limits, replace(goal, bound=known))
    while True:
        before = choices
        for limit in limits:
            for table, fixed in limit.rows:
                room = limit.bound - fixed - floor_of(table, choices)
                if room < 0:
                    return None
                choices = {layer: _within(table.get(layer), offered, room) for layer, offered in choices.items()}
        for tie in problem.ties:
            common = set.intersection(*({a for _, a in choices[layer]} for layer in tie)) if tie else set()
            for layer in tie:
                choices[layer] = tuple(bits for bits in choices[layer] if bits[1] in common)
        if not all(choices.values()):
            return None
        if choices == before:
            return choices


def _within(row: Mapping[Bits, Fraction] | None, offered: tuple[Bits, ...], room: Fraction) -> tuple[Bits, ...]:
    if row is None:
        return offered
    least = min(row[bits] for bits in offered)
    return tuple(bits for bits in offered if row[bits] - least <= room)


@dataclass(frozen=True)
class Raw:
    """What one run of the solver says, in its own units."""

    status: str
    plan: Plan | None = None
    bound: float = -math.inf


def _solve(
    problem: Problem,
    choices: Mapping[str, tuple[Bits, ...]],
    goal: Limit,
    floor: Fraction,
    scale: Fraction,
    excluded: Iterable[Plan],
    seconds: float,
    gap: float,
    margin: float,
) -> Raw:
    """One run of the solver on one-hot binaries; the objective is (cost − floor) / scale."""
    model, pick = new_model(problem, choices, excluded, margin)
    if len(goal.rows) == 1:
        model += pulp.lpSum(cost_terms(goal.rows[0][0], scale, pick))
    else:
        peak = model.add_variable("peak", lowBound=0)
        model += peak
        for table, fixed in goal.rows:
            below = float((floor - fixed - floor_of(table, choices)) / scale)
            model += pulp.lpSum(cost_terms(table, scale, pick)) - peak <= below
    return run_model(model, pick, seconds, gap)


Pick = Mapping[str, Mapping[Bits, Any]]
"""layer → choice → the solver's binary variable."""


def new_model(
    problem: Problem,
    choices: Mapping[str, tuple[Bits, ...]],
    excluded: Iterable[Plan] = (),
    margin: float = 0.0,
    relaxed: bool = False,
) -> tuple[Any, Pick]:
    """A model with one binary (`relaxed`: a share) for each choice, and all that `problem` asks for; no objective."""
    model = pulp.LpProblem("bits", pulp.LpMinimize)
    names = {layer: i for i, layer in enumerate(choices)}
    kind = {"lowBound": 0, "upBound": 1} if relaxed else {"cat": "Binary"}
    pick = {
        layer: {b: model.add_variable(f"x{names[layer]}_{b[0]}_{b[1]}", **kind) for b in offered}
        for layer, offered in choices.items()
    }
    for variables in pick.values():
        model += pulp.lpSum(variables.values()) == 1
    for tie in problem.ties:
        for layer in tie[1:]:
            for bits in sorted({a for _, a in choices[tie[0]]}):
                first, other = (
                    pulp.lpSum(v for (_, a), v in pick[member].items() if a == bits) for member in (tie[0], layer)
                )
                model += first - other == 0
    for limit in problem.limits:
        for table, fixed in limit.rows:
            room = limit.bound - fixed - floor_of(table, choices)
            # No room at all: the removal of choices has left only those that cost nothing more.
            if room > 0 and (terms := cost_terms(table, room, pick)):
                model += pulp.lpSum(terms) <= 1 - margin
    for plan in excluded:
        if all(bits in pick[layer] for layer, bits in plan.items()):
            model += pulp.lpSum(pick[layer][bits] for layer, bits in plan.items()) <= len(plan) - 1
    return model, pick


def cost_terms(table: Table, unit: Fraction, pick: Pick) -> list[Any]:
    """Terms, shifted to 0 for each layer's best choice; in units that make 1 the room there is."""
    terms = []
    for layer, variables in pick.items():
        if row := table.get(layer):
            least = min(row[bits] for bits in variables)
            excess = [(variable, float((row[bits] - least) / unit)) for bits, variable in variables.items()]
            terms += [value * variable for variable, value in excess if value]
    return terms


def run_model(model: Any, pick: Pick, seconds: float, gap: float) -> Raw:
    """Solve a model; its plan and what it proved, within the solver's tolerances."""
    solver = pulp.HiGHS(
        msg=False, gapRel=gap, gapAbs=0.0, timeLimit=seconds, threads=1, random_seed=0,
        mip_feasibility_tolerance=_TOLERANCE, primal_feasibility_tolerance=_TOLERANCE,
        dual_feasibility_tolerance=_TOLERANCE,
    )  # fmt: skip
    model.solve(solver)
    # `status` says Optimal after a time limit too; only `sol_status` tells them apart.
    outcome = model.sol_status
    if outcome == pulp.LpSolutionInfeasible:
        return Raw("infeasible")
    bound = float(model.solverModel.getInfo().mip_dual_bound)
    if not math.isfinite(bound):
        bound = -math.inf
    if outcome not in (pulp.LpSolutionOptimal, pulp.LpSolutionIntegerFeasible):
        return Raw("unknown", bound=bound)
    plan: Plan = {}
    for layer, variables in pick.items():
        chosen = [bits for bits, variable in variables.items() if round(variable.varValue or 0.0) == 1]
        if len(chosen) != 1:
            return Raw("unknown", bound=bound)
        plan[layer] = chosen[0]
    return Raw("optimal" if outcome == pulp.LpSolutionOptimal else "feasible", plan, bound)


def lexicographic(
    problem: Problem,
    objectives: Sequence[Table],
    *,
    seconds: float = 60.0,
    gap: float = 0.0,
    start: Plan | None = None,
) -> Solution:
    """The plan of the smallest first cost, among those of the smallest second, and so on.

    "Equal" means exactly equal.  The solution's figures are those of the first objective, `seconds` is the
    sum; where time runs out in a later one, the plan found so far is returned.
    """
    begun = time.monotonic()
    first = minimise(problem, objectives[0], seconds=seconds, gap=gap, start=start)
    if first.plan is None or first.status != "optimal" or gap > 0:
        return first
    plan, limits = first.plan, problem.limits
    for i, table in enumerate(objectives[1:]):
        done = objectives[i]
        limits = (*limits, Limit("tie-break", total(done, plan), ((done, Fraction(0)),)))
        left = seconds - (time.monotonic() - begun)
        if left <= 0:
            break
        further = minimise(replace(problem, limits=limits), table, seconds=left, start=plan)
        plan = further.plan or plan
    return replace(first, plan=plan, seconds=time.monotonic() - begun)

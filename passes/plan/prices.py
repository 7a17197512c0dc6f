"""What a unit of each limit is worth: the dual values of the linear relaxation."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pulp

from passes.plan.ilp import Limit, Problem, Table, cost_terms, floor_of, new_model, reduced


def prices_of(problem: Problem, loss: Table) -> list[tuple[Table, float]]:
    """(table of a limit's row, loss a unit of it is worth); nothing for rows that do not bind.

    The relaxation lets a layer mix its choices, so its price is that of the lower convex hull of loss over cost.
    """
    goal = Limit("objective", Fraction(0), ((loss, Fraction(0)),))
    choices = reduced(problem, goal, None)
    if choices is None:
        return []
    model, pick = new_model(replace(problem, limits=()), choices, relaxed=True)
    spread = [row[b] - min(row[o] for o in choices[k]) for k, row in loss.items() for b in choices[k]]
    unit = max(spread, default=Fraction(0)) or Fraction(1)
    model += pulp.lpSum(cost_terms(loss, unit, pick))
    rows = []
    for number, (table, room) in enumerate(_rooms(problem, choices)):
        if room > 0 and (terms := cost_terms(table, room, pick)):
            model += (pulp.lpSum(terms) <= 1, f"limit{number}")
            rows.append((f"limit{number}", table, room))
    model.solve(pulp.HiGHS(msg=False, threads=1, random_seed=0))
    if model.sol_status != pulp.LpSolutionOptimal:
        return []
    named = {constraint.name: constraint for constraint in model.constraints()} if rows else {}
    found = []
    for name, table, room in rows:
        price = max(0.0, -float(named[name].pi or 0.0)) * float(unit / room)
        if price > 0:
            found.append((table, price))
    return found


def _rooms(problem: Problem, choices: dict[str, tuple[tuple[int, int], ...]]) -> list[tuple[Table, Fraction]]:
    """Every row of every limit with what is left of it when all layers take their cheapest choice."""
    rows = [(limit, table, fixed) for limit in problem.limits for table, fixed in limit.rows]
    return [(table, limit.bound - fixed - floor_of(table, choices)) for limit, table, fixed in rows]

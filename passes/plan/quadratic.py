"""The least loss where pairs of choices interact: an integer quadratic program.

Small programs are linearised exactly; larger ones are iterated (the linear program at the gradient of the incumbent,
CLADO's and HAWQ-V2's sums being special cases) and then improved by local search, with a bound from a split of every
pair's term into single layers.  The answer is exact where the bound meets it, else its gap is stated.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
import pulp

from passes.plan.bound import Bound, lower_bound
from passes.plan.ilp import Limit, Plan, Problem, Raw, Solution, Table, minimise, new_model, reduced, run_model, total
from passes.plan.pairwise import Floats, Pairs, Rows, loss_of, own_folded
from passes.plan.search import Search

ROUNDS = 5
"""Linear programs at the gradient of the incumbent, from each start."""
MOST_PRODUCTS = 2500
"""Products of two choices up to which the program is also linearised exactly."""
MOST_NEXT = 40
"""Next-best plans of the bounding table that are looked at to close the gap."""
_EXPECTED = 5
"""So many of them must close a fifth of the gap, or they are given up."""
_STARTS = 4
"""Known plans the search begins from, the best ones."""
_KEPT = 8
"""Good plans that are returned beside the best."""


@dataclass(frozen=True)
class Quadratic:
    """The solution, and good plans to compare by measurement (the best one first)."""

    solution: Solution
    plans: tuple[Plan, ...] = ()


def minimise_quadratic(
    problem: Problem,
    loss: Table,
    pairs: Pairs,
    *,
    tie_break: Sequence[Table] = (),
    seconds: float = 60.0,
    gap: float = 0.0,
    starts: Sequence[Plan] = (),
    seed: int = 0,
) -> Quadratic:
    """The plan of the least loss over its layers and its pairs of choices.

    Args:
        problem: choices, limits, excluded plans; the ties are those of `pairs.grids`.
        loss: of single layers.
        pairs: what is added for pairs of choices.
        tie_break: costs that decide, in this order, between plans of equal loss.
        seconds: when to stop proving; the search itself is counted, not timed.
        gap: relative distance to the bound at which a plan is good enough.
        starts: known plans.
        seed: of the search's disturbances.
    """
    begun = time.monotonic()
    rows = Rows.of(problem, pairs.grids)
    folded, between = own_folded(rows, loss, pairs)
    first = minimise(problem, folded, seconds=seconds, start=next((p for p in starts if problem.allows(p)), None))
    if first.plan is None:
        return Quadratic(first)
    search = Search(problem, rows, folded, between, tie_break, seed)
    known = sorted((plan for plan in starts if problem.allows(plan)), key=lambda plan: loss_of(loss, pairs, plan))
    for plan in (first.plan, *known[:_STARTS]):
        search.descend(plan)
    for plan in (first.plan, search.ranked()[0]):
        for guess in _iterated(problem, rows, folded, between, plan, seconds):
            search.descend(guess)
    search.kicked(search.ranked()[0])

    def order(plan: Plan) -> tuple[Fraction, ...]:
        return (loss_of(loss, pairs, plan), *(total(table, plan) for table in tie_break))

    best = min(search.ranked()[:_KEPT], key=order)
    if not between.any():
        bound, exact = first.bound, first.status == "optimal"
    else:
        found = lower_bound(problem, rows, folded, between, seconds, anchors=(best,))
        bound = found.value
        best, bound, exact = _close(problem, rows, search, folded, between, found, best, order, begun + seconds, gap)
    value = loss_of(loss, pairs, best)
    # Both sides were rounded to floats: below their last digits nothing is left to prove.
    if float(value) - bound <= 1e-9 * max(abs(float(value)), float(np.abs(between).max(initial=0.0))):
        bound, exact = float(value), True
    solution = Solution(
        "optimal" if exact else "feasible", best, value, min(bound, float(value)), time.monotonic() - begun
    )
    others = [plan for plan in sorted(search.ranked()[: 4 * _KEPT], key=order) if plan != best]
    return Quadratic(solution, (best, *others[:_KEPT]))


def _iterated(problem: Problem, rows: Rows, folded: Table, between: Floats, plan: Plan, seconds: float) -> list[Plan]:
    """The linear program with each row's cost at the incumbent, a few times (algorithms.md 2.5, b)."""
    found: list[Plan] = []
    for _ in range(ROUNDS):
        gradient = between[:, rows.picked(plan)].sum(axis=1)
        further = minimise(problem, rows.linear(folded, gradient), seconds=seconds).plan
        if further is None or further == plan or further in found:
            break
        found.append(further)
        plan = further
    return found


def _close(
    problem: Problem,
    rows: Rows,
    search: Search,
    folded: Table,
    between: Floats,
    found: Bound,
    best: Plan,
    order: object,
    deadline: float,
    gap: float,
) -> tuple[Plan, float, bool]:
    """Raise the bound: by the next-best plans of the bounding table, then by the exact linearisation."""
    assert callable(order)
    bound = found.value

    def done() -> bool:
        value = float(order(best)[0])
        return value - bound <= max(gap, 1e-9) * max(abs(value), 1e-300) or time.monotonic() > deadline

    excluded = list(problem.excluded)
    plan = found.plan
    begun = bound
    for count in range(1, MOST_NEXT + 1):
        if done() or plan is None:
            break
        if count % _EXPECTED == 0 and bound - begun < 0.2 * (float(order(best)[0]) - begun):
            break
        excluded.append(plan)
        best = min(best, search.descend(plan), key=order)
        left = max(0.01, deadline - time.monotonic())
        # A plan that is not excluded yet costs at least what the table's next best one does.
        further = minimise(replace(problem, excluded=tuple(excluded)), found.table, seconds=left)
        if further.status == "infeasible":
            return best, float(order(best)[0]), True
        reached = further.bound + float(found.constant)
        bound = max(bound, min(reached, float(order(best)[0])))
        plan = further.plan
    if not done() and _products(rows, between) <= MOST_PRODUCTS:
        raw = _linearised(problem, rows, folded, between, best, found, order(best)[0], deadline - time.monotonic(), gap)
        if raw.plan is not None and problem.allows(raw.plan):
            best = min(best, search.descend(raw.plan), key=order)
        bound = max(bound, raw.bound)
    return best, bound, False


def _blocks(rows: Rows, between: Floats) -> list[tuple[range, range]]:
    """The pairs of subjects that interact."""
    return [
        (one, other)
        for i, one in enumerate(rows.spans)
        for other in rows.spans[i + 1 :]
        if between[one.start : one.stop, other.start : other.stop].any()
    ]


def _products(rows: Rows, between: Floats) -> int:
    return sum(len(one) * len(other) for one, other in _blocks(rows, between))


def _linearised(
    problem: Problem,
    rows: Rows,
    folded: Table,
    between: Floats,
    best: Plan,
    found: Bound,
    value: Fraction,
    seconds: float,
    gap: float,
) -> Raw:
    """The program with one share for each product of choices, whose sums are the choices (Sherali and Adams' first
    level): exact, and with a stronger relaxation than products bounded one by one."""
    # No better plan holds a choice that the bounding table rules out.
    goal = Limit("objective", Fraction(0), ((found.table, Fraction(0)),))
    room = max(value - found.constant, found.of(best) - found.constant)
    choices = reduced(replace(problem, excluded=()), goal, room)
    if choices is None or seconds <= 0:
        return Raw("unknown")
    model, pick = new_model(problem, choices, problem.excluded)
    carrier: dict[str, str] = {}
    for layer in choices:
        carrier.setdefault(f"a:{rows.grids[layer]}", layer)

    def row_share(row: int) -> object:
        subject, bits = rows.rows[row]
        layer, axis = (subject[2:], 0) if subject.startswith("w:") else (carrier[subject], 1)
        return pulp.lpSum(v for choice, v in pick[layer].items() if choice[axis] == bits)

    scale = float(np.abs(between).max()) or 1.0
    terms = [float(folded[k][b]) / scale * v for k, variables in pick.items() for b, v in variables.items()]
    for one, other in _blocks(rows, between):
        shares = {(r, s): model.add_variable(f"p{r}_{s}", lowBound=0, upBound=1) for r in one for s in other}
        for r in one:
            model += pulp.lpSum(shares[r, s] for s in other) - row_share(r) == 0
        for s in other:
            model += pulp.lpSum(shares[r, s] for r in one) - row_share(s) == 0
        terms += [float(between[r, s]) / scale * share for (r, s), share in shares.items() if between[r, s]]
    model += pulp.lpSum(terms)
    raw = run_model(model, pick, seconds, gap)
    bound = raw.bound * scale if math.isfinite(raw.bound) else -math.inf
    return replace(raw, bound=float(value) if raw.status == "infeasible" else bound)

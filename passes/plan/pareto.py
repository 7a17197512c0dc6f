"""The front of loss over one cost from a single sweep of its price (Lagrangian relaxation), without a solver.

At a price λ every tie takes what minimises loss + λ · cost on its own, so the plans met while λ falls from infinity to
0 are the sums of the ties' lower convex hulls, merged by slope: all corners of the front's lower convex hull, exactly.
Between two corners the line joining them bounds every plan (of single-layer losses) from below.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

from passes.plan.ilp import Plan, Problem, Table, total
from qcompile.pm.facts import Bits

Choice = Mapping[str, Bits]


@dataclass(frozen=True)
class Corner:
    """A plan on the convex hull.

    Attributes:
        plan: complete.
        cost, loss: exact.
        price: loss that one more unit of cost saves just below this corner's cost (0 beyond the last corner).
    """

    plan: Plan
    cost: Fraction
    loss: Fraction
    price: Fraction


@dataclass(frozen=True)
class _Point:
    cost: Fraction
    loss: Fraction
    choice: Choice


def sweep(problem: Problem, loss: Table, cost: Table) -> tuple[Corner, ...]:
    """The corners from the cheapest plan to the one of least loss; limits of the problem are left out of account.

    Args:
        problem: choices and ties.
        loss, cost: of single layers.

    Returns:
        Empty where the layers of some tie offer no activation width in common.
    """
    tied = {layer for tie in problem.ties for layer in tie}
    ties = [*problem.ties, *((layer,) for layer in problem.choices if layer not in tied)]
    hulls = [_tie_hull(problem, tie, loss, cost) for tie in ties]
    if not all(hulls):
        return ()
    plan: Plan = {layer: bits for hull in hulls for layer, bits in hull[0].choice.items()}
    corners = [_corner(problem, plan, loss, cost, Fraction(0))]
    for slope, number, i in _steps(hulls):
        plan = {**plan, **hulls[number][i + 1].choice}
        if corners[-1].price == slope and len(corners) > 1:
            corners.pop()
        corners.append(_corner(problem, plan, loss, cost, slope))
    return tuple(corners)


def hull_bound(corners: Sequence[Corner], budget: Fraction) -> Fraction | None:
    """What no plan of at most this cost can be below, or None where even the cheapest costs more."""
    if not corners or budget < corners[0].cost:
        return None
    for before, after in pairwise(corners):
        if budget < after.cost:
            return before.loss - after.price * (budget - before.cost)
    return corners[-1].loss


def within(corners: Sequence[Corner], problem: Problem) -> Plan | None:
    """The last corner that keeps the ties and limits of a problem."""
    return next((corner.plan for corner in reversed(corners) if problem.allows(corner.plan)), None)


def _corner(problem: Problem, plan: Plan, loss: Table, cost: Table, price: Fraction) -> Corner:
    ordered = {layer: plan[layer] for layer in problem.choices}
    return Corner(ordered, total(cost, ordered), total(loss, ordered), price)


def _tie_hull(problem: Problem, tie: Sequence[str], loss: Table, cost: Table) -> list[_Point]:
    points: list[_Point] = []
    common = set.intersection(*({a for _, a in problem.choices[layer]} for layer in tie)) if tie else set()
    for a in sorted(common):
        hulls = [
            lower_hull([
                _Point(cost.get(k, {}).get(b, Fraction(0)), loss.get(k, {}).get(b, Fraction(0)), {k: b})
                for b in problem.choices[k] if b[1] == a
            ])
            for k in tie
        ]  # fmt: skip
        points += _sum(hulls)
    return lower_hull(points)


def _sum(hulls: Sequence[list[_Point]]) -> list[_Point]:
    """The corners of the sum of several hulls: their steps in order of slope."""
    at = [hull[0] for hull in hulls]
    found = [_joined(at)]
    for _, number, i in _steps(hulls):
        at[number] = hulls[number][i + 1]
        found.append(_joined(at))
    return found


def _joined(points: Sequence[_Point]) -> _Point:
    choice = {layer: bits for point in points for layer, bits in point.choice.items()}
    return _Point(sum((p.cost for p in points), Fraction(0)), sum((p.loss for p in points), Fraction(0)), choice)


def _steps(hulls: Sequence[list[_Point]]) -> list[tuple[Fraction, int, int]]:
    """(slope, hull, corner it starts from) of every step of several hulls, the steepest first."""
    steps = [(_slope(*ends), number, i) for number, hull in enumerate(hulls) for i, ends in enumerate(pairwise(hull))]
    return sorted(steps, key=lambda step: (-step[0], step[1], step[2]))


def _slope(before: _Point, after: _Point) -> Fraction:
    """Loss saved by a unit of cost."""
    return (before.loss - after.loss) / (after.cost - before.cost)


def lower_hull(points: Sequence[_Point]) -> list[_Point]:
    """The corners with falling loss and flattening slope, by rising cost."""
    hull: list[_Point] = []
    for point in sorted(points, key=lambda p: (p.cost, p.loss)):
        if hull and point.loss >= hull[-1].loss:
            continue
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) <= _slope(hull[-1], point):
            hull.pop()
        hull.append(point)
    return hull

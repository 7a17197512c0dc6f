"""A linear table that no plan's loss is below: pairwise terms, pushed into single layers.

Each pair's term is split as M(r, s) ≥ u(r) + v(s) + least, which holds for any u and v; the sum over all pairs is
a table of single layers, and the integer program on it, under the true limits, bounds every plan.  Max-sum diffusion
(Werner, "A linear programming approach to max-sum problem", 2007) chooses u and v, at prices of the limits taken from
the linear relaxation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from passes.plan.ilp import Plan, Problem, Table, minimise
from passes.plan.pairwise import Floats, Rows
from passes.plan.prices import prices_of

SWEEPS = 60


@dataclass(frozen=True, eq=False)
class Bound:
    """`constant` + the table's total is at most the loss of any plan the problem allows.

    Attributes:
        table: of single layers.
        constant: of all plans.
        value: what the integer program proved for the best plan, −inf where time ran out.
        plan: the plan that is best by the table.
        exact: whether `value` is that plan's cost.
    """

    table: Table
    constant: Fraction
    value: float
    plan: Plan | None
    exact: bool

    def of(self, plan: Plan) -> Fraction:
        return self.constant + sum((self.table[layer][bits] for layer, bits in plan.items()), Fraction(0))


def lower_bound(
    problem: Problem, rows: Rows, loss: Table, between: Floats, seconds: float, anchors: Sequence[Plan] = ()
) -> Bound:
    """The best of the bounds by diffusion and by the gradient at each known plan.

    Args:
        problem: choices and limits.
        rows: of the problem.
        loss: of single layers.
        between: matrix (R, R) of pairs of subjects.
        seconds: for each integer program.
        anchors: plans at which a split is tried that is exact there.
    """
    splits = [_diffused(problem, rows, loss, between)]
    splits += [_anchored(rows, between, plan) for plan in anchors]
    found = [_solved(problem, rows, loss, between, split, seconds) for split in splits]
    return max(found, key=lambda bound: bound.value)


def _solved(problem: Problem, rows: Rows, loss: Table, between: Floats, split: Floats, seconds: float) -> Bound:
    """`split` (R, S): what each row takes over of its pairs with each subject."""
    rest = between - split[:, rows.owner] - split[:, rows.owner].T
    least = Fraction(0)
    for i, one in enumerate(rows.spans):
        for other in rows.spans[i + 1 :]:
            least += Fraction(float(rest[one.start : one.stop, other.start : other.stop].min()))
    # The subtraction above was rounded, each entry by at most a few units of the largest one's last digit.
    least -= Fraction(float(np.abs(between).max(initial=0.0) + np.abs(split).max(initial=0.0)) * 1e-15 * split.size)
    table = rows.linear(loss, split.sum(axis=1))
    solution = minimise(problem, table, seconds=seconds)
    value = solution.bound + float(least)
    return Bound(table, least, value, solution.plan, solution.status == "optimal")


def _anchored(rows: Rows, between: Floats, plan: Plan) -> Floats:
    """Half the gradient at a plan: exact there where the matrix is positive semi-definite."""
    picked = rows.picked(plan)
    columns = between[:, picked]
    return np.asarray(columns - columns[picked][rows.owner] / 2)


def _diffused(problem: Problem, rows: Rows, loss: Table, between: Floats) -> Floats:
    """Max-sum diffusion on the loss plus the limits at their prices; (R, S)."""
    priced = rows.spread(loss)
    for table, price in prices_of(problem, loss):
        priced += price * rows.spread(table)
    span = float(np.abs(priced).max(initial=0.0) + np.abs(between).max(initial=0.0)) or 1.0
    own = rows.forbidden() * (4 * span)
    for _, _, i, j in rows.cells():
        own[i, j] = own[j, i] = priced[i, j]
    count, widest = len(rows.spans), max(len(s) for s in rows.spans)
    # Subjects of fewer rows are padded with rows that cost more than any.
    padded = np.full((count, widest), -1)
    for s, rows_of_subject in enumerate(rows.spans):
        padded[s, : len(rows_of_subject)] = list(rows_of_subject)
    real = padded >= 0
    theta = (between + own)[np.ix_(padded.ravel(), padded.ravel())].reshape(count, widest, count, widest)
    theta = theta.transpose(0, 2, 1, 3).copy()
    theta += 8 * span * (~real)[:, None, :, None] + 8 * span * (~real)[None, :, None, :]
    linked = np.array([[np.any(theta[s, t][np.ix_(real[s], real[t])]) for t in range(count)] for s in range(count)])
    np.fill_diagonal(linked, False)
    message = np.zeros((count, count, widest))  # of subject s with t: what s has taken over
    unary = np.zeros((count, widest))
    for _ in range(SWEEPS):
        for s in range(count):
            others = np.flatnonzero(linked[s])
            if len(others) == 0:
                continue
            slack = theta[s, others] - message[s, others][:, :, None] - message[others, s][:, None, :]
            least = slack.min(axis=2)
            total = unary[s] + least.sum(axis=0)
            share = total / (len(others) + 1)
            # Pairs give all they can spare, then all of it is dealt out evenly.
            message[s, others] += least - share[None, :]
            unary[s] = share
    split = np.zeros((len(rows.rows), count))
    for s, rows_of_subject in enumerate(rows.spans):
        split[list(rows_of_subject)] = message[s, :, : len(rows_of_subject)].T
    # The pairs inside a layer stay in its table; only what crosses layers was to be split.
    inside = rows.forbidden()
    for _, _, i, j in rows.cells():
        inside[i, j] = inside[j, i] = 1.0
    crossing = np.zeros((count, count), bool)
    for s, one in enumerate(rows.spans):
        for t, other in enumerate(rows.spans):
            crossing[s, t] = s != t and not inside[one.start, other.start] and bool(linked[s, t])
    return np.where(crossing[rows.owner], split, 0.0)

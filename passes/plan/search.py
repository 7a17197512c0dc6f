"""Local search on the true loss of plans with pairwise terms: the best change of one or two subjects, until none helps.

Everything is counted, nothing timed, so that the same problem gives the same plan.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from passes.plan.ilp import Plan, Problem, Table
from passes.plan.pairwise import Floats, Rows

KICKS = 12
"""Restarts from a few random feasible changes of the best plan."""
_KICK_MOVES = 4
_MOST_MOVES = 400
_TIE_BREAK = 1e-9
"""Weight of the tie-breaking costs, in units of the loss's own range."""


@dataclass(frozen=True, eq=False)
class _Quadratic:
    """The sum of a symmetric matrix over the pairs of picked rows."""

    matrix: Floats

    def value(self, picked: NDArray[np.int64]) -> float:
        return float(self.matrix[np.ix_(picked, picked)].sum() / 2)

    def columns(self, picked: NDArray[np.int64]) -> Floats:
        """Entries of every row with each picked row, (R, S)."""
        return self.matrix[:, picked]


@dataclass(eq=False)
class Search:
    """A problem, prepared for many descents.

    Args:
        problem: choices, limits and excluded plans; its ties are those of the grids.
        rows: of the problem.
        loss: table of single layers.
        between: matrix (R, R) of the other pairs.
        costs: decide, in this order, between plans of equal loss.
        seed: of the kicks.

    Attributes:
        seen: every local optimum found, as plan → loss (float); all of them are allowed, exactly.
    """

    problem: Problem
    rows: Rows
    loss: Table
    between: Floats
    costs: Sequence[Table] = ()
    seed: int = 0
    seen: dict[tuple[int, ...], float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        objective = self.rows.spread(self.loss) + self.between
        scale = float(np.abs(objective).max()) or 1.0
        for order, table in enumerate(self.costs, 1):
            cost = self.rows.spread(table)
            objective = objective + cost * (scale * _TIE_BREAK**order / (float(np.abs(cost).max()) or 1.0))
        self._objective = _Quadratic(objective)
        self._limits = [(_Quadratic(self.rows.forbidden()), 0.5)]
        for limit in self.problem.limits:
            for table, fixed in limit.rows:
                room = float(limit.bound - fixed)
                self._limits.append((_Quadratic(self.rows.spread(table)), room + 1e-12 * abs(room)))
        self._noise = 1e-13 * scale

    def descend(self, plan: Plan) -> Plan:
        """The local optimum below a plan that keeps the limits."""
        picked = self.rows.picked(plan)
        for _ in range(_MOST_MOVES):
            move = self._best_move(picked)
            if move is None:
                break
            picked = move
        self.seen[tuple(picked.tolist())] = self._objective.value(picked)
        return self.rows.plan(picked)

    def kicked(self, plan: Plan, count: int = KICKS) -> Plan:
        """The best of some descents from randomly disturbed plans, each time from the best so far."""
        rng = np.random.default_rng(self.seed)
        best = self.rows.picked(plan)
        value = self._objective.value(best)
        for _ in range(count):
            picked = best
            for _ in range(_KICK_MOVES):
                picked = self._random_move(picked, rng)
            found = self.rows.picked(self.descend(self.rows.plan(picked)))
            if (reached := self._objective.value(found)) < value - self._noise:
                best, value = found, reached
        return self.rows.plan(best)

    def ranked(self) -> list[Plan]:
        """The local optima seen, the best first."""
        return [self.rows.plan(picked) for picked, _ in sorted(self.seen.items(), key=lambda item: (item[1], item[0]))]

    def _random_move(self, picked: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
        for _ in range(30):
            trial = picked.copy()
            for subject in rng.choice(len(self.rows.spans), min(2, len(self.rows.spans)), replace=False):
                span = self.rows.spans[subject]
                trial[subject] = span.start + rng.integers(len(span))
            if all(quadratic.value(trial) <= room for quadratic, room in self._limits) and self._allowed(trial):
                return trial
        return picked

    def _allowed(self, picked: NDArray[np.int64]) -> bool:
        return self.problem.allows(self.rows.plan(picked))

    def _best_move(self, picked: NDArray[np.int64]) -> NDArray[np.int64] | None:
        """The best allowed change of one or two subjects, or None where none lowers the objective."""
        owner = self.rows.owner
        current = picked[owner]
        terms = [(q, q.columns(picked), room) for q, room in (*[(self._objective, 0.0)], *self._limits)]
        singles = []
        for quadratic, columns, room in terms:
            marginal = columns.sum(axis=1)
            singles.append((marginal - marginal[current], room - quadratic.value(picked)))
        tried: list[tuple[float, int, int]] = []
        gain, _ = singles[0]
        feasible = np.logical_and.reduce([delta <= room for delta, room in singles[1:]])
        good = np.flatnonzero(feasible & (gain < -self._noise))
        tried += [(float(gain[r]), int(r), int(r)) for r in good]
        for span in self.rows.spans:
            rows = np.arange(span.start, span.stop)
            rows = rows[rows != current[span.start]]
            if len(rows) == 0:
                continue
            deltas = []
            for (quadratic, columns, _), (delta, _room) in zip(terms, singles, strict=True):
                m = quadratic.matrix
                cross = m[rows] - columns[rows][:, owner] - m[current[span.start]][None, :]
                cross += columns[current[span.start]][owner][None, :]
                deltas.append(delta[rows][:, None] + delta[None, :] + cross)
            kept = np.logical_and.reduce([d <= room for d, (_, room) in zip(deltas[1:], singles[1:], strict=True)])
            kept &= (deltas[0] < -self._noise) & (np.arange(len(owner)) >= span.stop)[None, :]
            kept &= (current != np.arange(len(owner)))[None, :]
            if kept.any():
                values = np.where(kept, deltas[0], np.inf)
                # A few of each subject's best, in case the exact check refuses some.
                for flat in np.argsort(values, axis=None, kind="stable")[:4]:
                    i, q = divmod(int(flat), values.shape[1])
                    if values[i, q] < np.inf:
                        tried.append((float(values[i, q]), int(rows[i]), q))
        for _, r, q in sorted(tried):
            moved = picked.copy()
            moved[owner[r]], moved[owner[q]] = r, q
            if self._allowed(moved):
                return moved
        return None

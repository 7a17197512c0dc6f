"""Bits without a solver: the closed form for loss falling as 4^−b, rounded, repaired and improved by local steps.

Minimising Σ aᵢ · 4^(−bᵢ) under Σ nᵢ · bᵢ = B gives bᵢ = B/N + ½ log2(aᵢ/nᵢ) − ½ Σⱼ nⱼ log2(aⱼ/nⱼ)/N (reverse
water-filling; the allocation of BAQ, for layers instead of columns).  It knows one limit, on bytes; all others, and the
choices there really are, are met by the repair, behind which single and double changes look for less loss.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from passes.plan.ilp import Plan, Problem, Table
from passes.plan.pairwise import Floats, Rows, own_folded
from passes.plan.pairwise import Pairs as PairTerms
from passes.plan.search import Search


def continuous_bits(
    weights: Mapping[str, float], elements: Mapping[str, float], budget: float, least: float, most: float
) -> dict[str, float]:
    """Real-valued bits of each layer in [least, most] whose sum over elements is the budget, as near as the box lets.

    Args:
        weights: layer → a of its loss a · 4^−b; 0 where the bits do not matter.
        elements: layer → number of weights n > 0.
        budget: Σ n · b, in bits.
        least, most: the box.
    """
    free = {k for k in weights if weights[k] > 0}
    fixed = dict.fromkeys((k for k in weights if k not in free), least)
    while free:
        left = budget - sum(elements[k] * b for k, b in fixed.items())
        count = sum(elements[k] for k in free)
        level = sum(elements[k] * math.log2(weights[k] / elements[k]) for k in free) / count
        bits = {k: left / count + 0.5 * (math.log2(weights[k] / elements[k]) - level) for k in free}
        over = sum(elements[k] * max(0.0, b - most) for k, b in bits.items())
        under = sum(elements[k] * max(0.0, least - b) for k, b in bits.items())
        if over == under == 0:
            return {k: fixed[k] if k in fixed else bits[k] for k in weights}
        # Of the two sides of the box, the one that moves more is certain to be filled at the optimum.
        outside = {k for k, b in bits.items() if (b > most if over >= under else b < least)}
        fixed.update(dict.fromkeys(outside, most if over >= under else least))
        free -= outside
    return {k: fixed[k] for k in weights}


def coefficient(by_bits: Mapping[int, float]) -> float:
    """a of the loss a · 4^−b that fits bits → loss best on a logarithmic scale; 0 where no loss is positive."""
    logs = [math.log2(loss) + 2 * bits for bits, loss in by_bits.items() if loss > 0]
    return 2.0 ** (sum(logs) / len(logs)) if logs else 0.0


def allocate(problem: Problem, rows: Rows, loss: Table, pairs: PairTerms | None, memory: Table) -> Plan | None:
    """A plan that keeps all limits, or None where the greedy steps find none.

    Args:
        problem: choices, ties and limits.
        rows: of the problem.
        loss: of single layers.
        pairs: further terms, which only the greedy steps see.
        memory: bytes of each layer at each choice.
    """
    budget = next((float(limit.bound) for limit in problem.limits if limit.name == "memory"), None)
    greedy = _Greedy(problem, rows, loss, pairs)
    wanted: dict[str, float] = {}
    if budget is not None:
        best = {k: max(a for _, a in row) for k, row in problem.choices.items()}
        curves = {
            k: coefficient({w: float(loss.get(k, {}).get((w, a), 0)) for w, a in row if a == best[k]})
            for k, row in problem.choices.items()
        }
        size = {k: max(float(memory[k][b]) * 8 / b[0] for b in row) for k, row in problem.choices.items()}
        widths = [w for row in problem.choices.values() for w, _ in row]
        wanted = continuous_bits(curves, size, budget * 8, min(widths), max(widths))
    plan = greedy.run(wanted)
    return None if plan is None else Search(problem, rows, greedy.table, greedy.between).descend(plan)


class _Greedy:
    """Single changes by loss per cost: down until the limits are kept, then up while they stay kept."""

    def __init__(self, problem: Problem, rows: Rows, loss: Table, pairs: PairTerms | None) -> None:
        self.problem, self.rows = problem, rows
        self.table: Table = loss
        self.between: Floats = np.zeros((len(rows.rows), len(rows.rows)))
        if pairs is not None:
            self.table, self.between = own_folded(rows, loss, pairs)
        self.loss = rows.spread(self.table) + self.between
        self.forbidden = rows.forbidden()
        self.limits = [
            (rows.spread(table), float(limit.bound - fixed)) for limit in problem.limits for table, fixed in limit.rows
        ]

    def run(self, wanted: Mapping[str, float]) -> Plan | None:
        picked = self._start(wanted)
        if picked is None:
            return None
        for _ in range(4 * len(self.rows.rows)):
            moved = self._step(picked)
            if moved is None:
                break
            picked = moved
        plan = self.rows.plan(picked.tolist())
        return plan if self.problem.allows(plan) else None

    def _start(self, wanted: Mapping[str, float]) -> NDArray[np.int64] | None:
        """Widest activations, and of the weights the widest that is not above what is wanted."""
        plan: Plan = {}
        groups: dict[str, list[str]] = {}
        for layer in self.problem.choices:
            groups.setdefault(self.rows.grids[layer], []).append(layer)
        for layers in groups.values():
            common = set.intersection(*({a for _, a in self.problem.choices[k]} for k in layers))
            if not common:
                return None
            for k in layers:
                offered = sorted(w for w, a in self.problem.choices[k] if a == max(common))
                below = [w for w in offered if w <= wanted.get(k, offered[-1]) + 1e-9]
                plan[k] = (below[-1] if below else offered[0], max(common))
        return self.rows.picked(plan)

    def _step(self, picked: NDArray[np.int64]) -> NDArray[np.int64] | None:
        """The best single change: away from a limit that is broken, else to less loss within them; None at the end."""
        current = picked[self.rows.owner]
        gain = _change(self.loss, picked, current)
        legal = (_change(self.forbidden, picked, current) <= 0.5) & (current != np.arange(len(current)))
        changes = [(_change(m, picked, current), room - _value(m, picked), room) for m, room in self.limits]
        broken = [(delta, -left, room) for delta, left, room in changes if left < 0]
        if broken:
            relief = sum(np.minimum(-delta, by) / max(abs(room), 1e-300) for delta, by, room in broken)
            useful = legal & (relief > 0)
            price = np.where(useful, np.maximum(gain, 0.0) / np.where(useful, relief, 1.0), np.inf)
            if not useful.any():
                return None
            # Of equal prices the most relief.
            best = int(min(np.flatnonzero(price == price.min()), key=lambda r: -float(np.asarray(relief)[r])))
        else:
            kept = np.logical_and.reduce([legal, *(delta <= left for delta, left, _ in changes)]) & (gain < 0)
            if not kept.any():
                return None
            cost = np.zeros(len(gain))
            for delta, _, room in changes:
                cost += np.maximum(delta, 0.0) / max(abs(room), 1e-300)
            worth = np.where(kept, -gain / np.maximum(cost, 1e-12), -np.inf)
            best = int(np.argmax(worth))
        moved = picked.copy()
        moved[self.rows.owner[best]] = best
        return moved


def _value(matrix: Floats, picked: NDArray[np.int64]) -> float:
    return float(matrix[np.ix_(picked, picked)].sum() / 2)


def _change(matrix: Floats, picked: NDArray[np.int64], current: NDArray[np.int64]) -> Floats:
    """What the sum changes by where one subject moves to each row."""
    marginal = matrix[:, picked].sum(axis=1)
    return np.asarray(marginal - marginal[current])

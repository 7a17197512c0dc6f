"""The choices of a plan as rows of a table of pairs: one row for each width of each layer's weights and of each grid.

A plan picks one row of each subject.  A layer's loss or cost at (w, a) is the entry of the rows "weights of the layer
at w" and "its grid at a", so ties hold by construction and every table becomes one symmetric matrix.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from passes.plan.ilp import Plan, Problem, Table, total
from qcompile.pm.facts import Bits

Row = tuple[str, int]
"""(subject, bits); subjects are `w:<layer>` and `a:<grid>`."""
Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Pairs:
    """What the loss of a plan holds beyond the sum of its layers' tables.

    Attributes:
        rows: (subject, bits) of each row and column.
        matrix: float64 (R, R), symmetric; entry i, j is added where a plan picks rows i and j.
        grids: layer → the grid it reads.
    """

    rows: tuple[Row, ...]
    matrix: Floats
    grids: Mapping[str, str]

    @cached_property
    def index(self) -> dict[Row, int]:
        return {row: i for i, row in enumerate(self.rows)}

    def value(self, plan: Mapping[str, Bits]) -> Fraction:
        """The sum over the plan's pairs of rows, rounded once to a float."""
        picked = [self.index[row] for row in rows_of(plan, self.grids) if row in self.index]
        part = self.matrix[np.ix_(picked, picked)]
        return Fraction(math.fsum(part[np.triu_indices(len(picked), 1)].tolist()))


def rows_of(plan: Mapping[str, Bits], grids: Mapping[str, str]) -> tuple[Row, ...]:
    """The rows a plan picks, each once."""
    weights = ((f"w:{layer}", bits[0]) for layer, bits in plan.items())
    grid_rows = ((f"a:{grids[layer]}", bits[1]) for layer, bits in plan.items())
    return tuple(dict.fromkeys((*weights, *grid_rows)))


def loss_of(loss: Table, pairs: Pairs | None, plan: Mapping[str, Bits]) -> Fraction:
    """Predicted loss of a plan: its layers' and its pairs'."""
    return total(loss, plan) + (pairs.value(plan) if pairs is not None else 0)


@dataclass(frozen=True, eq=False)
class Rows:
    """All rows of a problem in order of their subjects.

    Attributes:
        choices, grids: as in `Problem` and `Pairs`.
        rows: (subject, bits).
        owner: int64 (R,), index of each row's subject.
        spans: subject → its rows, as a range.
    """

    choices: Mapping[str, tuple[Bits, ...]]
    grids: Mapping[str, str]
    rows: tuple[Row, ...]
    owner: NDArray[np.int64]
    spans: tuple[range, ...]

    @classmethod
    def of(cls, problem: Problem, grids: Mapping[str, str]) -> Rows:
        """The rows of the choices a problem offers."""
        widths: dict[str, set[int]] = {f"w:{layer}": {w for w, _ in row} for layer, row in problem.choices.items()}
        for layer, row in problem.choices.items():
            widths.setdefault(f"a:{grids[layer]}", set()).update(a for _, a in row)
        rows = tuple((subject, bits) for subject, found in widths.items() for bits in sorted(found))
        counts = [len(found) for found in widths.values()]
        ends = np.cumsum(counts)
        spans = tuple(range(int(end) - count, int(end)) for end, count in zip(ends, counts, strict=True))
        return cls(problem.choices, grids, rows, np.repeat(np.arange(len(counts)), counts), spans)

    @cached_property
    def index(self) -> dict[Row, int]:
        return {row: i for i, row in enumerate(self.rows)}

    def picked(self, plan: Mapping[str, Bits]) -> NDArray[np.int64]:
        """The rows of a plan by subject, int64 (S,)."""
        found = np.zeros(len(self.spans), np.int64)
        for row in rows_of(plan, self.grids):
            found[self.owner[self.index[row]]] = self.index[row]
        return found

    def plan(self, picked: Iterable[int]) -> Plan:
        """The plan of one row for each subject."""
        bits = dict(self.rows[i] for i in picked)
        return {layer: (bits[f"w:{layer}"], bits[f"a:{grid}"]) for layer, grid in self._layers}

    @cached_property
    def _layers(self) -> tuple[tuple[str, str], ...]:
        return tuple((layer, self.grids[layer]) for layer in self.choices)

    def cells(self) -> Iterable[tuple[str, Bits, int, int]]:
        """(layer, bits, weight row, grid row) of every choice."""
        for layer, offered in self.choices.items():
            for bits in offered:
                yield layer, bits, self.index[f"w:{layer}", bits[0]], self.index[f"a:{self.grids[layer]}", bits[1]]

    def spread(self, table: Table) -> Floats:
        """A table as a symmetric matrix float64 (R, R)."""
        found = np.zeros((len(self.rows), len(self.rows)))
        for layer, bits, i, j in self.cells():
            if layer in table:
                found[i, j] = found[j, i] = float(table[layer][bits])
        return found

    def forbidden(self) -> Floats:
        """1 for each pair of rows of one layer that is not a choice of it, else 0; float64 (R, R)."""
        found = np.zeros((len(self.rows), len(self.rows)))
        for layer, grid in self._layers:
            weights, grids = (self.spans[self.owner[self._first(f"{k}")]] for k in (f"w:{layer}", f"a:{grid}"))
            found[np.ix_(weights, grids)] = 1.0
        for _, _, i, j in self.cells():
            found[i, j] = 0.0
        return np.maximum(found, found.T)

    def _first(self, subject: str) -> int:
        return next(i for i, row in enumerate(self.rows) if row[0] == subject)

    def between(self, pairs: Pairs) -> Floats:
        """The matrix of the pairs on these rows, float64 (R, R); zero within one subject."""
        where = [pairs.index.get(row, -1) for row in self.rows]
        known = np.array([i >= 0 for i in where])
        found = np.zeros((len(self.rows), len(self.rows)))
        chosen = [i for i in where if i >= 0]
        found[np.ix_(known, known)] = pairs.matrix[np.ix_(chosen, chosen)]
        found[self.owner[:, None] == self.owner[None, :]] = 0.0
        return found

    def linear(self, loss: Table, extra: Floats) -> Table:
        """The table with an amount added to each row; a grid's amount is carried by the first layer that reads it."""
        carrier: dict[str, str] = {}
        for layer, grid in self._layers:
            carrier.setdefault(grid, layer)
        found: dict[str, dict[Bits, Fraction]] = {layer: {} for layer in self.choices}
        for layer, bits, i, j in self.cells():
            amount = float(extra[i]) + (float(extra[j]) if carrier[self.grids[layer]] == layer else 0.0)
            found[layer][bits] = loss.get(layer, {}).get(bits, Fraction(0)) + Fraction(amount)
        return found


def own_folded(rows: Rows, loss: Table, pairs: Pairs) -> tuple[dict[str, dict[Bits, Fraction]], Floats]:
    """The loss with the pairs inside one layer added to it, and the matrix (R, R) of all other pairs."""
    between = rows.between(pairs)
    folded = {layer: dict(loss.get(layer) or dict.fromkeys(row, Fraction(0))) for layer, row in rows.choices.items()}
    for layer, bits, i, j in rows.cells():
        folded[layer][bits] += Fraction(float(between[i, j]))
    for _, _, i, j in rows.cells():
        between[i, j] = between[j, i] = 0.0
    # What is left inside a layer are pairs that are no choice of it.
    between[rows.forbidden() > 0] = 0.0
    return folded, between

"""A plan on file, solved again: what a little more of a budget would change."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from passes.plan import ilp
from passes.plan.pairwise import Pairs, loss_of
from passes.plan.quadratic import minimise_quadratic
from passes.plan.tables import Tables, ties_of
from qcompile.pm.facts import Interactions

SECONDS = 10.0
"""Of the solver, for each answer."""


def interactions_to_json(found: Interactions) -> dict[str, Any]:
    """Rows, and the entries above the diagonal row by row as little-endian float32 in base64."""
    upper = found.matrix[np.triu_indices(len(found.bits), 1)].astype("<f4")
    return {
        "subjects": list(found.subjects), "bits": list(found.bits), "method": found.method,
        "upper": base64.b64encode(upper.tobytes()).decode(),
    }  # fmt: skip


def interactions_from_json(data: Mapping[str, Any]) -> Interactions:
    """What `interactions_to_json` made."""
    count = len(data["bits"])
    matrix = np.zeros((count, count))
    matrix[np.triu_indices(count, 1)] = np.frombuffer(base64.b64decode(data["upper"]), "<f4")
    return Interactions(tuple(data["subjects"]), tuple(data["bits"]), matrix + matrix.T, data["method"])


@dataclass(frozen=True)
class Resolver:
    """The tables of a plan.json, ready to be solved under other budgets.

    Attributes:
        tables: exact; layers that were pinned or protected offer what they have.
        plan: the one on file.
    """

    tables: Tables
    plan: ilp.Plan

    @classmethod
    def of(cls, record: Mapping[str, Any], fixed: Iterable[str]) -> Resolver | None:
        """From plan.json; None where it holds no choices (a uniform or given plan).

        Args:
            record: the parsed file.
            fixed: regular expressions of layers that keep their bits.
        """
        layers: Mapping[str, Any] = record["layers"]
        if not layers or not all(facts["choices"] for facts in layers.values()):
            return None
        patterns = tuple(fixed)
        plan: ilp.Plan = {layer: (facts["bits"][0], facts["bits"][1]) for layer, facts in layers.items()}
        rows = {layer: {(c["bits"][0], c["bits"][1]): c for c in facts["choices"]} for layer, facts in layers.items()}
        kept = {layer for layer in layers if any(re.fullmatch(pattern, layer) for pattern in patterns)}
        choices = {k: (plan[k],) if k in kept else tuple(sorted(row)) for k, row in rows.items()}
        grids = {layer: facts["reads"] or layer for layer, facts in layers.items()}
        noted = record.get("interactions")
        found = None if noted is None else interactions_from_json(noted)
        pairs = None
        if found is not None:
            pairs = Pairs(tuple(zip(found.subjects, found.bits, strict=True)), found.matrix, grids)

        def table(key: str) -> ilp.Table:
            return ilp.exact({k: {bits: row[bits][key] for bits in choices[k]} for k, row in rows.items()})

        fixed_seconds = ilp.rational(record.get("fixed_seconds") or 0.0)
        tables = Tables(choices, grids, table("loss"), table("seconds"), table("bytes"), fixed_seconds, (), pairs)
        return cls(tables, plan)

    def total(self, axis: str) -> Fraction:
        """What the plan takes of "memory" (bytes) or "latency" (seconds, as the cost table adds up)."""
        table, fixed = (
            (self.tables.memory, Fraction(0)) if axis == "memory" else (self.tables.latency, self.tables.fixed)
        )
        return ilp.total(table, self.plan) + fixed

    def with_more(self, axis: str, extra: Fraction, axes: Iterable[str]) -> dict[str, Any]:
        """The best plan with a little more of one budget than the plan takes, and no more of the others.

        Args:
            axis: "memory" or "latency".
            extra: bytes or seconds.
            axes: the budgets that are held.

        Returns:
            axis, extra, loss (of the new plan), saved (of predicted loss), changes (layer → [bits before, after]).
        """
        limits = {other: self.total(other) + (extra if other == axis else 0) for other in dict.fromkeys((*axes, axis))}
        tables = self.tables
        found = tuple(
            ilp.Limit("latency", bound, ((tables.latency, tables.fixed),))
            if other == "latency" else ilp.Limit("memory", bound, ((tables.memory, Fraction(0)),))
            for other, bound in limits.items()
        )  # fmt: skip
        problem = ilp.Problem(tables.choices, ties_of(tables.grids), found)
        before = loss_of(tables.loss, tables.pairs, self.plan)
        plan = self._solved(problem) or self.plan
        after = loss_of(tables.loss, tables.pairs, plan)
        if after >= before:
            plan, after = self.plan, before
        changes = {k: [list(self.plan[k]), list(bits)] for k, bits in plan.items() if bits != self.plan[k]}
        return {
            "axis": axis, "extra": float(extra), "loss": float(after), "saved": float(before - after),
            "changes": changes,
        }  # fmt: skip

    def _solved(self, problem: ilp.Problem) -> ilp.Plan | None:
        tables = self.tables
        if tables.pairs is None:
            order = (tables.loss, tables.latency, tables.memory)
            return ilp.lexicographic(problem, order, seconds=SECONDS, start=self.plan).plan
        found = minimise_quadratic(
            problem, tables.loss, tables.pairs, tie_break=(tables.latency, tables.memory), seconds=SECONDS,
            starts=(self.plan,),
        )  # fmt: skip
        return found.solution.plan


def shadow_prices(resolver: Resolver, axes: Iterable[str]) -> list[dict[str, Any]]:
    """What 1 % more of each budget would change, and one more MiB or millisecond where that is not too much.

    Args:
        axes: the budgets that were given; bytes and latency of the plan stand in for none.
    """
    held = tuple(axes) or ("memory", "latency")
    found = []
    for axis in held:
        total = resolver.total(axis)
        if total <= 0:
            continue
        whole = Fraction(1 << 20) if axis == "memory" else Fraction(1, 1000)
        widest = _most(resolver, axis)
        extras = [total / 100, *([whole] if total + whole < 2 * widest else [])]
        found += [resolver.with_more(axis, extra, held) for extra in sorted(extras)]
    return found


def _most(resolver: Resolver, axis: str) -> Fraction:
    tables = resolver.tables
    table, fixed = (tables.memory, Fraction(0)) if axis == "memory" else (tables.latency, tables.fixed)
    return fixed + sum((max(table[k][b] for b in row) for k, row in tables.choices.items()), Fraction(0))

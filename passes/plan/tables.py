"""The notes and inputs of the planner as exact tables: what `solve-bits` minimises and limits."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from passes.plan.ilp import Limit, Plan, Table, exact, rational, total
from passes.plan.pairwise import Pairs, loss_of
from passes.plan.pins import check_supported, check_ties, pinned, protected
from qcompile.errors import DataError, InfeasibleError, UsageError
from qcompile.ir import Graph
from qcompile.pm.base import PassContext
from qcompile.pm.facts import COSTS, GROUPS, INTERACTIONS, LOSS, Bits, CostTable, Interactions, LossTable
from qcompile.units import format_bits

LiveSet = Mapping[str, Mapping[int, int]]
"""Grid → activation bits → bytes, for values that live at the same time."""


@dataclass(frozen=True)
class Tables:
    """Exact tables over the same layers and choices.

    Attributes:
        choices: layer → what it offers: in both notes, finite, and as pinned.
        grids: layer → the grid group it reads.
        loss, latency, memory: predicted loss, seconds (scaled), packed bytes.
        fixed: seconds of all other kernels, scaled.
        live: live sets of activations.
        pairs: what the loss holds for pairs of choices, or None.
    """

    choices: dict[str, tuple[Bits, ...]]
    grids: dict[str, str]
    loss: Table
    latency: Table
    memory: Table
    fixed: Fraction
    live: tuple[LiveSet, ...]
    pairs: Pairs | None = None

    @classmethod
    def read(cls, graph: Graph, ctx: PassContext) -> Tables:
        """From the notes and `ctx.data`; layers are in the order of the graph.

        Raises:
            DataError: a predicted loss, a cost or a scale is not a number.
            UsageError: a pin does not fit.
            InfeasibleError: a layer offers nothing.
        """
        losses, costs = graph.notes[LOSS], graph.notes[COSTS]
        layers = [node.name for node in graph.nodes if node.name in losses]
        grids = {layer: graph.notes[GROUPS][layer].grid for layer in layers}
        pins = {
            **protected(layers, ctx.data.get("protect") or (), ctx.target),
            **pinned(layers, ctx.data.get("pins") or {}),
        }
        check_supported(pins, ctx.target)
        check_ties(ties_of(grids), pins, "pinned")
        choices = {layer: _offered(layer, losses[layer], costs[layer], pins.get(layer)) for layer in layers}
        scale = _number(ctx, "latency_scale", 1.0)
        return cls(
            choices,
            grids,
            exact({k: {b: losses[k].loss[b] for b in row} for k, row in choices.items()}),
            {k: {b: scale * rational(costs[k].seconds[b]) for b in row} for k, row in choices.items()},
            exact({k: {b: costs[k].bytes[b[0]] for b in row} for k, row in choices.items()}),
            scale * _number(ctx, "fixed_seconds", 0.0),
            tuple(ctx.data.get("activation_terms") or ()),
            _pairs(graph.notes.get(INTERACTIONS).get(""), grids) if ctx.data.get("pairs", True) else None,
        )

    @property
    def ties(self) -> tuple[tuple[str, ...], ...]:
        return ties_of(self.grids)

    def limits(self, latency: float | None, memory: int | None, activations: int | None) -> tuple[Limit, ...]:
        """The limits that are set, in this order."""
        found = []
        if latency is not None:
            found.append(Limit("latency", rational(latency), ((self.latency, self.fixed),)))
        if memory is not None:
            found.append(Limit("memory", Fraction(memory), ((self.memory, Fraction(0)),)))
        if activations is not None:
            if not self.live:
                raise UsageError("a limit on activations needs the sizes of the live values (activation_terms)")
            found.append(Limit("activations", Fraction(activations), self._live_rows()))
        return tuple(found)

    def _live_rows(self) -> tuple[tuple[Table, Fraction], ...]:
        reader = {grid: layer for layer, grid in reversed(self.grids.items())}
        rows = []
        for sizes in self.live:
            table: dict[str, dict[Bits, Fraction]] = {}
            fixed = 0
            for grid, by_bits in sizes.items():
                largest = max(by_bits.values())
                if grid not in reader:
                    fixed += largest
                    continue
                # Tied layers agree on the activation bits, so one of them can carry the size of the grid.
                row = self.choices[reader[grid]]
                table[reader[grid]] = {bits: Fraction(by_bits.get(bits[1], largest)) for bits in row}
            rows.append((table, Fraction(fixed)))
        return tuple(rows)

    def predict(self, plan: Mapping[str, Bits]) -> dict[str, float]:
        """Loss, seconds and bytes of a plan, as the tables add up."""
        figures = {
            "loss": float(loss_of(self.loss, self.pairs, plan)),
            "latency": float(total(self.latency, plan) + self.fixed),
            "memory": float(total(self.memory, plan)),
        }
        if self.live:
            figures["activations"] = float(Limit("activations", Fraction(0), self._live_rows()).value(plan))
        return figures

    def uniform_plans(self) -> list[Plan]:
        """The plans with one precision for all layers, least predicted loss first.

        A layer that does not offer it (or is pinned) takes the smallest it offers that is at least as
        precise.
        """
        wanted = sorted({bits for row in self.choices.values() for bits in row})
        plans: list[Plan] = []
        for bits in wanted:
            plan = self._nearest(bits)
            if plan is not None and plan not in plans:
                plans.append(plan)
        return sorted(plans, key=lambda plan: (loss_of(self.loss, self.pairs, plan), total(self.latency, plan)))

    def _nearest(self, bits: Bits) -> Plan | None:
        plan: Plan = {}
        for tie in self.ties:
            for a in _activations(bits[1], [self.choices[layer] for layer in tie]):
                rows = {k: [b for b in self.choices[k] if b[1] == a] for k in tie}
                # Less than was asked for is taken only where a layer offers (or is pinned to) nothing else.
                plan.update({k: min([b for b in row if b[0] >= bits[0]], default=max(row)) for k, row in rows.items()})
                break
            else:
                return None
        return {layer: plan[layer] for layer in self.choices}


def _activations(least: int, rows: Sequence[Sequence[Bits]]) -> Iterator[int]:
    """Activation bits all rows offer: from `least` upwards, then smaller ones, the largest first."""
    common = set.intersection(*({a for _, a in row} for row in rows))
    yield from sorted(a for a in common if a >= least)
    yield from sorted((a for a in common if a < least), reverse=True)


def ties_of(grids: Mapping[str, str]) -> tuple[tuple[str, ...], ...]:
    """Layers that read the same grid, in order."""
    tied: dict[str, list[str]] = {}
    for layer, grid in grids.items():
        tied.setdefault(grid, []).append(layer)
    return tuple(map(tuple, tied.values()))


def _offered(layer: str, losses: LossTable, costs: CostTable, pin: Bits | None) -> tuple[Bits, ...]:
    for bits, loss in losses.loss.items():
        if math.isnan(loss) or loss == -math.inf:
            raise DataError(
                f"the predicted loss of {layer!r} at {format_bits(bits)} is {loss}",
                hint="the model or the calibration data yields values that are not numbers",
            )
    for bits, seconds in costs.seconds.items():
        if not math.isfinite(seconds) or seconds < 0:
            raise DataError(f"the latency of {layer!r} at {format_bits(bits)} is {seconds}")
    # An infinite loss says that a choice is impossible.
    offered = sorted(b for b, v in losses.loss.items() if v < math.inf and b in costs.seconds and b[0] in costs.bytes)
    if pin is not None:
        if pin not in offered:
            raise UsageError(
                f"{layer!r} is pinned to {format_bits(pin)}, which it does not offer",
                hint=f"it offers {', '.join(map(format_bits, offered)) or 'nothing'}",
            )
        return (pin,)
    if not offered:
        raise InfeasibleError(f"{layer!r} has no precision with both a finite predicted loss and a cost")
    return tuple(offered)


def _pairs(found: Interactions | None, grids: Mapping[str, str]) -> Pairs | None:
    """The terms in single precision, as plan.json keeps them, so that a plan can be solved again from there."""
    if found is None:
        return None
    matrix = found.matrix.astype(np.float32).astype(np.float64)
    if not np.isfinite(matrix).all():
        raise DataError(
            f"an inter-layer term ({found.method}) is not a number",
            hint="the model or the calibration data yields values that are not numbers",
        )
    return Pairs(tuple(zip(found.subjects, found.bits, strict=True)), matrix, dict(grids))


def _number(ctx: PassContext, key: str, default: float) -> Fraction:
    value = ctx.data.get(key)
    value = default if value is None else float(value)
    if not math.isfinite(value) or value < 0:
        raise DataError(f"{key} must be a finite number and not negative, not {value}")
    return rational(value)

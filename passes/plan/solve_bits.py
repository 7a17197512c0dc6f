"""Choose the precision of every layer by an integer program over predicted loss and measured cost."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from passes.plan import ilp
from passes.plan.infeasible import infeasible_error
from passes.plan.tables import Tables
from qcompile.errors import InfeasibleError
from qcompile.ir import Aspect, Graph
from qcompile.pm.base import ON_FLOAT, Exact, Pass, PassContext, PassResult, Report
from qcompile.pm.facts import BITS, COSTS, GROUPS, LOSS, BitChoice
from qcompile.units import format_bits, parse_bytes, parse_latency

_RUNNERS_UP = 3


@dataclass(frozen=True)
class SolveBits(Pass):
    """Give each layer the (weight, activation) bits of least total predicted loss that keep all limits.

    Before:  notes loss, costs, groups        After:  note bits

    Among plans of exactly equal loss the faster one is taken, then the smaller one.  Further inputs in
    `ctx.data`: `fixed_seconds` (all other kernels), `latency_scale` (measured end to end over predicted; it
    multiplies layers and fixed part alike), `pins` (regex → (w, a)) and `activation_terms` (live sets, grid →
    bits → bytes; a grid no layer reads counts with its largest size).

    Attributes:
        latency: seconds, end to end.
        memory: bytes of packed weights.
        activations: bytes of activations that live at the same time.
        gap: relative distance to the bound at which the solver may stop.
        seconds: time limit of the solver.
    """

    name: ClassVar[str] = "solve-bits"
    levels = ON_FLOAT
    requires = (LOSS, COSTS, GROUPS)
    provides = (BITS,)
    changes = Aspect.NOTHING
    preserves = Exact()

    latency: float | None = field(default=None, metadata={"parse": parse_latency})
    memory: int | None = field(default=None, metadata={"parse": parse_bytes})
    activations: int | None = field(default=None, metadata={"parse": parse_bytes})
    gap: float = 0.0
    seconds: float = 60.0

    def run(self, graph: Graph, ctx: PassContext) -> PassResult:
        """Raises InfeasibleError where no plan keeps the limits, DataError where a loss is not a number."""
        tables = Tables.read(graph, ctx)
        problem = ilp.Problem(tables.choices, tables.ties, tables.limits(self.latency, self.memory, self.activations))
        uniform = [plan for plan in tables.uniform_plans() if problem.allows(plan)]
        order = (tables.loss, tables.latency, tables.memory)
        start = uniform[0] if uniform else None
        solution = ilp.lexicographic(problem, order, seconds=self.seconds, gap=self.gap, start=start)
        if solution.plan is None:
            if solution.status == "infeasible":
                raise infeasible_error(problem, self.seconds, pins=bool(ctx.data.get("pins")))
            raise InfeasibleError(
                f"no plan was found in {self.seconds:g} s; there may be one",
                hint="give the solver more seconds",
            )
        candidates = [solution.plan]
        for _ in range(_RUNNERS_UP):
            further = replace(problem, excluded=tuple(candidates))
            # The optimum took `solution.seconds`; runners-up are worth no more than that.
            limit = max(1.0, min(solution.seconds, self.seconds))
            plan = ilp.minimise(further, tables.loss, seconds=limit, gap=self.gap).plan
            if plan is None:
                break
            candidates.append(plan)
        candidates += [plan for plan in uniform if plan not in candidates]
        choices = {layer: BitChoice(*bits) for layer, bits in solution.plan.items()}
        report = Report(
            done=tuple(f"{layer}: {format_bits(bits)}" for layer, bits in solution.plan.items()),
            facts={
                "solver": _solver_facts(solution),
                "candidates": candidates,
                "predicted": [tables.predict(plan) for plan in candidates],
            },
        )
        return PassResult(graph.with_notes(graph.notes.with_table(BITS, choices)), report)


def _solver_facts(solution: ilp.Solution) -> dict[str, Any]:
    known = math.isfinite(solution.bound)
    return {
        "status": solution.status,
        "objective": float(solution.objective),
        "bound": solution.bound if known else None,
        "gap": solution.gap if known else None,
        "seconds": solution.seconds,
    }

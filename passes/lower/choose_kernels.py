"""choose-kernels: the fastest legal implementation of every kernel."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from qcompile.errors import InternalError
from qcompile.ir import Graph
from qcompile.pm.base import ON_INT, Levels, Pass, PassContext, PassResult, Report
from qcompile.target.backend import Backend, Measurement
from qcompile.target.bench import measure_missing
from qcompile.target.cost import CostCache
from qcompile.target.program import Program, work_of
from qcompile.target.table import MeasuredCosts

MARGIN = 0.03
"""By how much an implementation must be faster than the preferred one, as a share of the latter's time."""


@dataclass(frozen=True)
class ChooseKernels(Pass):
    """Set each kernel's variant: the fastest one measured, or the backend's first where nothing is measured.

    Another than the first must be faster by more than measurements err (`MARGIN`).
    """

    name: ClassVar[str] = "choose-kernels"
    levels: ClassVar[Levels] = ON_INT
    needs = ("backend", "program")

    threads: int = 1

    def run(self, graph: Graph, ctx: PassContext) -> PassResult:
        if ctx.program is None or ctx.backend is None:
            raise InternalError("choose-kernels needs a program and a backend")
        program = choose(ctx.program, ctx.backend, ctx.costs, self.threads, ctx.progress, ctx.data.get("costs"))
        counts: dict[str, int] = {}
        for kernel in program.kernels:
            counts[kernel.variant] = counts.get(kernel.variant, 0) + 1
        done = tuple(f"{variant}: {count} kernels" for variant, count in sorted(counts.items()))
        return PassResult(graph, Report(done=done, facts={"variants": counts}), program)


def choose(
    program: Program,
    backend: Backend,
    costs: CostCache | None,
    threads: int,
    progress: Callable[[str, int, int], None] = lambda task, done, total: None,
    table: MeasuredCosts | None = None,
) -> Program:
    """The program with every variant set; with a cost cache, what is not known of a choice is measured first.

    Args:
        table: costs that were measured elsewhere, for where there is no cache.
    """
    offered = {kernel.name: backend.variants(kernel, program) for kernel in program.kernels}
    works = {
        (kernel.name, variant): work_of(kernel, program, variant)
        for kernel in program.kernels
        for variant in offered[kernel.name]
    }
    contested = {
        work.key: (work, replace(kernel, variant=variant), program)
        for kernel in program.kernels
        for variant in offered[kernel.name]
        if len(offered[kernel.name]) > 1 and (work := works[kernel.name, variant])
    }
    known: Mapping[str, Measurement] = {} if table is None else table.rows
    if costs is not None:
        known = measure_missing(contested, backend, costs, threads, progress)
    kernels = []
    for kernel in program.kernels:
        seconds = {v: known[key].median for v in offered[kernel.name] if (key := works[kernel.name, v].key) in known}
        measured = tuple(v for v in offered[kernel.name] if v in seconds)
        among = offered[kernel.name] if table is None else measured or offered[kernel.name]
        kernels.append(replace(kernel, variant=fastest(among, seconds)))
    return replace(program, kernels=tuple(kernels))


def preferred(program: Program, backend: Backend) -> Program:
    """The program with every kernel in the variant its backend prefers, which needs no measuring."""
    kernels = (replace(kernel, variant=backend.variants(kernel, program)[0]) for kernel in program.kernels)
    return replace(program, kernels=tuple(kernels))


def fastest(offered: Sequence[str], seconds: Mapping[str, float]) -> str:
    """Which of the offered implementations, preferred first, is taken at these measured times.

    The preferred one unless another is faster by `MARGIN`: a kernel timed alone has all caches to itself, and the
    preferred ones need less of them.
    """
    first = offered[0]
    if first not in seconds:
        return first
    best = min(seconds, key=lambda v: (seconds[v], v))
    return first if seconds[first] * (1 - MARGIN) <= seconds[best] else best

"""choose-kernels: the fastest legal implementation of every kernel."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from qcompile.errors import InternalError
from qcompile.ir import Graph
from qcompile.pm.base import ON_INT, Levels, Pass, PassContext, PassResult, Report
from qcompile.target.backend import Backend
from qcompile.target.cost import CostCache
from qcompile.target.program import Program, work_of


@dataclass(frozen=True)
class ChooseKernels(Pass):
    """Set each kernel's variant: the fastest one measured, or the backend's first where nothing was measured."""

    name: ClassVar[str] = "choose-kernels"
    levels: ClassVar[Levels] = ON_INT
    needs = ("backend", "program")

    threads: int = 1

    def run(self, graph: Graph, ctx: PassContext) -> PassResult:
        if ctx.program is None or ctx.backend is None:
            raise InternalError("choose-kernels needs a program and a backend")
        program = choose(ctx.program, ctx.backend, ctx.costs, self.threads)
        counts: dict[str, int] = {}
        for kernel in program.kernels:
            counts[kernel.variant] = counts.get(kernel.variant, 0) + 1
        done = tuple(f"{variant}: {count} kernels" for variant, count in sorted(counts.items()))
        return PassResult(graph, Report(done=done, facts={"variants": counts}), program)


def choose(program: Program, backend: Backend, costs: CostCache | None, threads: int) -> Program:
    """The program with every variant set."""
    offered = {kernel.name: backend.variants(kernel, program) for kernel in program.kernels}
    works = {
        (kernel.name, variant): work_of(kernel, program, variant)
        for kernel in program.kernels
        for variant in offered[kernel.name]
    }
    known = {} if costs is None else costs.get_many(works.values(), threads, backend.fingerprint())
    kernels = []
    for kernel in program.kernels:
        timed = {v: known[key] for v in offered[kernel.name] if (key := works[kernel.name, v].key) in known}
        best = min(timed, key=lambda v: (timed[v].median, v)) if timed else offered[kernel.name][0]
        kernels.append(replace(kernel, variant=best))
    return replace(program, kernels=tuple(kernels))

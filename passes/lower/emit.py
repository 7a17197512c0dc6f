"""emit: the library of a lowered program."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from qcompile.errors import InternalError
from qcompile.ir import Graph
from qcompile.pm.base import ON_INT, Levels, Pass, PassContext, PassResult, Report


@dataclass(frozen=True)
class Emit(Pass):
    """Build the program's library into the folder `ctx.data["directory"]`; the report holds the backend's facts."""

    name: ClassVar[str] = "emit"
    levels: ClassVar[Levels] = ON_INT
    needs = ("backend", "program")

    def run(self, graph: Graph, ctx: PassContext) -> PassResult:
        if ctx.program is None or ctx.backend is None:
            raise InternalError("emit needs a program and a backend")
        facts = ctx.backend.build(ctx.program, Path(ctx.data["directory"]))
        return PassResult(graph, Report(done=(f"{len(ctx.program.kernels)} kernels built",), facts=facts), ctx.program)

"""copy-at-boundary: values that enter or leave get a copy where the caller's layout differs from the kernels'."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from qcompile.ir import Aspect, Graph, GraphBuilder
from qcompile.pm.base import ON_INT, Levels, Pass, PassContext, PassResult, Report


@dataclass(frozen=True)
class CopyAtBoundary(Pass):
    """Callers pass and receive row-major arrays; images inside are channels-last with a halo.

    Before:  %c = conv2d(%x)            After:  %x:in = reshape(%x)      # the same shape: a copy between layouts
                                                %c = conv2d(%x:in)
    An image that is shown as an output gets a copy behind it, and so does a value shown twice or an input shown
    directly.
    """

    name: ClassVar[str] = "copy-at-boundary"
    levels: ClassVar[Levels] = ON_INT
    changes = Aspect.STRUCTURE

    def run(self, graph: Graph, ctx: PassContext) -> PassResult:
        builder = GraphBuilder(graph.name, graph.level)
        rename: dict[str, str] = {}
        done: list[str] = []

        def copy(value: str, suffix: str) -> str:
            done.append(value)
            shape = builder.type_of(value).shape
            return builder.add(
                "reshape",
                [value],
                name=f"{value}:{suffix}",
                attrs={"shape": shape},
                origin=(value, self.name),
            )

        for port in graph.inputs:
            value = builder.input(port.name, port.type, port.grid)
            rename[port.name] = copy(value, "in") if len(port.type.sample) == 3 else value
        for node in graph.nodes:
            rename[node.name] = builder.copy(graph, node, rename)
        shown: set[str] = {port.name for port in graph.inputs}
        for out in graph.outputs:
            value = rename[out.value]
            if len(builder.type_of(value).sample) == 3 or value in shown:
                value = copy(value, "out")
            shown.add(value)
            builder.output(out.name, value, out.grid)
        result = builder.build(notes=graph.notes, tail=graph.tail)
        return PassResult(result, Report(done=tuple(f"copied {value}" for value in done)))

"""A view of the float graph in which what a layer reads has a name of its own.

A value that layers and others read (a block's output, which the next convolution and the addition behind it
take) reaches its layers through an added reshape to its own shape.  So the analyses and the simulation can
treat the copy at few bits apart from the 8-bit value, as `integerize` does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from passes.structure import Structure
from qcompile.ir import WEIGHTED, Graph, GraphBuilder, Node, rebuild


@dataclass(frozen=True, slots=True)
class LayerInputs:
    """Attributes:
    graph: the same function; layers read the values in `read_as`.
    read_as: stored value → the name under which layers read it (its own where nothing else reads it).
    """

    graph: Graph
    read_as: Mapping[str, str]

    @property
    def copies(self) -> dict[str, str]:
        """The names under which layers read what others read too → the stored value."""
        return {name: value for value, name in self.read_as.items() if name != value}


def separate_layer_inputs(graph: Graph, structure: Structure) -> LayerInputs:
    """Add the reshapes; structure is that of `graph`."""
    read_as: dict[str, str] = {}

    def visit(builder: GraphBuilder, node: Node, rename: Mapping[str, str]) -> str | None:
        if node.op not in WEIGHTED:
            return None
        source = node.inputs[0]
        others = source in graph.output_values or any(user.op not in WEIGHTED for user in graph.users[source])
        if source not in read_as:
            read_as[source] = rename[source]
            if others:
                shape = {"shape": graph.type_of(source).shape}
                read_as[source] = builder.add("reshape", [rename[source]], name=f"{source}:read", attrs=shape)
        return builder.copy(graph, node, {source: read_as[source]})

    return LayerInputs(rebuild(graph, visit), read_as)

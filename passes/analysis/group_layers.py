"""group-layers: which layers share their activation bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from passes.structure import Structure
from qcompile.ir import Graph
from qcompile.pm.base import ON_FLOAT, Levels, Pass, PassContext, PassResult, Report
from qcompile.pm.facts import GROUPS, GridGroup


@dataclass(frozen=True)
class GroupLayers(Pass):
    """Tie the layers that read one grid: they share its activation bits (HAWQV3 ties a shortcut to its block)."""

    name: ClassVar[str] = "group-layers"
    levels: ClassVar[Levels] = ON_FLOAT
    provides = (GROUPS,)

    def run(self, graph: Graph, ctx: PassContext) -> PassResult:
        structure = Structure(graph)
        table = {layer: GridGroup(structure.layer_group(layer)) for layer in structure.layers}
        ties = tuple(
            f"{', '.join(layers)} read {group}" for group, layers in structure.tied().items() if len(layers) > 1
        )
        return PassResult(graph.with_notes(graph.notes.with_table(GROUPS, table)), Report(done=ties))

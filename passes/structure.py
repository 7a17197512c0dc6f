"""Which values of a float graph will be stored as integers, and which of them must share a grid.

The analyses, the planner and `integerize` read this one description, so they cannot disagree.

* A *region* is the run of nodes that becomes one stored value: an anchor, a residual addition joined to a
  convolution, and the activation behind it (clip or prelu).  Values inside a region exist only as int32 accumulators.
* A *grid group* is a set of stored values on one grid: what max pooling and data movement pass through, and the
  operands of a concat that are read by nothing else.
* Layers that read values of one group share their activation bits: they are *tied*.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import networkx as nx

from qcompile.ir import GRID_KEEPING, WEIGHTED, Graph, Node

ACCUMULATING = WEIGHTED | {"add", "sub", "mul", "avg_pool", "reduce_mean"}
"""Operators that yield int32 sums, which a requant behind them brings onto a grid."""

_ACTIVATIONS = ("clip", "prelu")


@dataclass(frozen=True, slots=True)
class Region:
    """Nodes that become one stored value.

    Attributes:
        value: the stored value, named like the last node.
        anchor: the first node.
        join: the add or sub joined behind a convolution or linear anchor, or None.
        activation: the clip or prelu at the end, or None; it is the anchor itself where it stands alone.
    """

    value: str
    anchor: Node
    join: Node | None = None
    activation: Node | None = None

    @property
    def nodes(self) -> tuple[Node, ...]:
        parts = (self.anchor, self.join, self.activation)
        return tuple(dict.fromkeys(node for node in parts if node is not None))

    def reads(self) -> tuple[str, ...]:
        """The stored values it reads, in order."""
        inside = {node.name for node in self.nodes}
        return tuple(dict.fromkeys(v for node in self.nodes for v in node.inputs if v not in inside))


class Structure:
    """Regions, grid groups and ties of a canonical float graph.

    Attributes:
        regions: stored value → region, in execution order (graph inputs have none).
        group_of: stored value (graph inputs too) → name of its grid group.
        members: group → its values.
        layers: names of all conv2d and linear nodes, in order.
        reads: layer → the stored value it reads.
        shared: values read by a layer and also by something that needs 8 bits (an addition, an output, …).
        wide: groups that only show outputs and stay int32.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.regions = {region.value: region for region in _regions(graph)}
        self.layers = tuple(node.name for node in graph.nodes if node.op in WEIGHTED)
        self.reads = {name: graph.by_name[name].inputs[0] for name in self.layers}
        self.readers: dict[str, list[Region]] = {v: [] for v in (*(p.name for p in graph.inputs), *self.regions)}
        for region in self.regions.values():
            for value in region.reads():
                self.readers[value].append(region)
        self._make_groups()
        self.shared = frozenset(g for g in self.members if self._is_shared(g))
        self.wide = frozenset(g for g in self.members if self._is_wide(g))

    def _make_groups(self) -> None:
        view: nx.Graph[str] = nx.Graph()
        view.add_nodes_from(self.readers)
        for value, region in self.regions.items():
            if region.anchor.op not in GRID_KEEPING:
                continue
            for source in region.anchor.inputs:
                if region.anchor.op != "concat" or self._only_read_by(source, region):
                    view.add_edge(source, value)
        self.group_of: dict[str, str] = {}
        self.members: dict[str, tuple[str, ...]] = {}
        order = {value: i for i, value in enumerate(self.readers)}
        for component in nx.connected_components(view):
            values = sorted(component, key=order.__getitem__)
            self.members[values[0]] = tuple(values)
            self.group_of.update(dict.fromkeys(values, values[0]))

    def _only_read_by(self, value: str, region: Region) -> bool:
        return self.readers[value] == [region] and value not in self.graph.output_values

    def _is_shared(self, group: str) -> bool:
        layered = other = False
        for value in self.members[group]:
            other = other or value in self.graph.output_values
            for region in self.readers[value]:
                if self.group_of[region.value] == group:
                    continue
                direct = region.anchor.op in WEIGHTED and region.anchor.inputs[0] == value
                joined = region.join is not None and value in region.join.inputs
                layered, other = layered or direct, other or joined or not direct
        return layered and other

    def _is_wide(self, group: str) -> bool:
        values = self.members[group]
        if any(port.name in values for port in self.graph.inputs):
            return False
        for value in values:
            region = self.regions[value]
            if region.anchor.op not in ACCUMULATING and region.anchor.op not in GRID_KEEPING - {"max_pool"}:
                return False
            if region.activation is not None and region.activation.op == "prelu":
                return False
            if any(self.group_of[reader.value] != group for reader in self.readers[value]):
                return False
        return any(value in self.graph.output_values for value in values)

    def layer_group(self, layer: str) -> str:
        """The grid group a layer reads."""
        return self.group_of[self.reads[layer]]

    def tied(self) -> dict[str, tuple[str, ...]]:
        """Grid group → the layers that read it, for groups read by at least one layer."""
        found: dict[str, list[str]] = {}
        for layer in self.layers:
            found.setdefault(self.layer_group(layer), []).append(layer)
        return {group: tuple(layers) for group, layers in found.items()}


def _regions(graph: Graph) -> Iterator[Region]:
    taken: set[str] = set()
    for node in graph.nodes:
        if node.name in taken:
            continue
        join = activation = None
        last = node
        if node.op in WEIGHTED and (join := _joined_add(graph, node)):
            last = join
        if node.op in ACCUMULATING:
            user = graph.sole_user(last.name)
            # A slope for negatives needs the sign of one sum: it cannot follow an addition in one rounding.
            summed = join is not None or node.op in ("add", "sub")
            if user is not None and (user.op == "clip" or (user.op == "prelu" and not summed)):
                activation = last = user
        elif node.op in _ACTIVATIONS:
            activation = node
        region = Region(last.name, node, join, activation)
        taken.update(part.name for part in region.nodes)
        yield region


def _joined_add(graph: Graph, layer: Node) -> Node | None:
    """The addition behind a layer that can run in its epilogue: the layer must be the operand computed last."""
    user = graph.sole_user(layer.name)
    if user is None or user.op not in ("add", "sub") or len(set(user.inputs)) != 2 or user.type != layer.type:
        return None
    position = {node.name: i for i, node in enumerate(graph.nodes)}
    other = next(value for value in user.inputs if value != layer.name)
    # An operand that is itself an accumulator of a later layer is joined there instead.
    return user if position.get(other, -1) < position[layer.name] else None

"""A graph advanced layer by layer over all batches, once in floats and once with what is rounded so far."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from qcompile.exec.tensors import image_order
from qcompile.exec.torch_exec import TorchGraph, evaluate, parts_of
from qcompile.ir import Array, Graph, Node


class PairedSteps:
    """Two runs of one float graph side by side: the float one, and one with replaced weights and rounded values.

    Every batch waits at a node; what later nodes need is kept, everything else is dropped.  So memory holds the
    live values of all samples at one place of the graph, and each node runs once.

    Args:
        graph: float graph.
        batches: float32 arrays by input name; read once.
        quantize: applied to every value of the second run, as in `TorchGraph.run`.
    """

    def __init__(
        self, graph: Graph, batches: Sequence[Mapping[str, Array]], quantize: Callable[[str, Tensor], Tensor]
    ) -> None:
        self.graph, self.quantize = graph, quantize
        self.model = TorchGraph(graph)
        self.index = {node.name: i for i, node in enumerate(graph.nodes)}
        self.replaced: dict[str, dict[str, Tensor]] = {}
        self.values: list[dict[str, tuple[Tensor, Tensor]]] = []
        for batch in (part for whole in batches for part in parts_of(graph, whole)):
            inputs = {name: image_order(torch.from_numpy(np.array(x, np.float32))) for name, x in batch.items()}
            self.values.append({name: (x, quantize(name, x)) for name, x in inputs.items()})
        self.position = [0] * len(self.values)

    def replace(self, layer: str, w: Array, b: Array) -> None:
        """From now on the second run uses these weights and this bias for a layer; both real, any float dtype."""
        consts = {"w": w, "b": b}
        self.replaced[layer] = {role: torch.from_numpy(np.array(x, np.float32)) for role, x in consts.items()}

    def inputs_of(self, layer: str, other: str | None = None) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
        """Batch by batch, what a layer reads: in the float run and in the rounded one, (n, …) each.

        Layers must be asked for in execution order.  The third tensor is the float run's value `other` minus the
        rounded one's; None where none is asked for or it comes behind the layer.
        """
        stop = self.index[layer]
        source = self.graph.nodes[stop].inputs[0]
        for number, values in enumerate(self.values):
            with torch.no_grad():
                for node in self.graph.nodes[self.position[number] : stop]:
                    values[node.name] = self._run(node, values)
                    for dead in self.model.last_uses.get(node.name, ()):
                        del values[dead]
            self.position[number] = stop
            missing = values[other][0] - values[other][1] if other is not None and other in values else None
            yield *values[source], missing

    def _run(self, node: Node, values: Mapping[str, tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        consts = self.model.consts_of(node)
        real = evaluate(node, [values[v][0] for v in node.inputs], consts)
        own = {**consts, **self.replaced.get(node.name, {})}
        return real, self.quantize(node.name, evaluate(node, [values[v][1] for v in node.inputs], own))

"""The change each choice makes at the place where it acts, before the rest of the network reacts to it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from passes.analysis.subjects import Choice, Rounder
from qcompile.exec.tensors import Tensor, fake_quantize, to_tensor
from qcompile.exec.torch_exec import TorchGraph
from qcompile.exec.torch_taps import response
from qcompile.ir import Graph
from qcompile.semantics.grids import activation_grid


class Perturbations:
    """Weights change their layer's output, by the layer of Q(W) − W; values that layers read change to Q(x).

    Attributes:
        runner: the float view in which layers' inputs have names of their own.
        places: names of the values that change: outputs of layers, and what layers read.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph, self.rounder = graph, Rounder(graph)
        self.structure = self.rounder.structure
        self.runner = TorchGraph(self.rounder.graph)
        self.places = (*self.structure.layers, *self.rounder.read_as.values())
        self.made: dict[tuple[str, int], dict[str, Tensor]] = {}

    def of(self, choice: Choice, values: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """(place, change of its value), given the float values of the places, (n, …) each."""
        if choice.of_weights:
            source = self.rounder.graph.by_name[choice.name].inputs[0]
            yield choice.name, response(self.runner, choice.name, values[source], self.constants(choice))
            return
        for value, read in self.rounder.read_as.items():
            if self.structure.group_of[value] == choice.name:
                grid = activation_grid(*self.rounder.ranges[choice.name].clip[choice.bits], choice.bits)
                yield read, fake_quantize(values[read], grid) - values[read]

    def outputs(self, choice: Choice, values: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """(layer, change of its output) of every layer the choice acts on directly."""
        if choice.of_weights:
            yield from self.of(choice, values)
            return
        changes = dict(self.of(choice, values))
        for layer in self.structure.tied()[choice.name]:
            source = self.rounder.graph.by_name[layer].inputs[0]
            yield layer, response(self.runner, layer, changes[source], {"w": self.runner.weights[layer]})

    def constants(self, choice: Choice) -> Mapping[str, Tensor]:
        """Rounded minus float constants of a layer, by role."""
        key = choice.name, choice.bits
        if key not in self.made:
            node = self.graph.by_name[choice.name]
            rounded = self.rounder.weights(*key)
            self.made[key] = {"w": rounded["w"] - to_tensor(self.graph.const(node, "w"))}
            if "b" in rounded:
                bias = self.graph.const_or(node, "b")
                real = np.zeros(len(rounded["b"]), np.float32) if bias is None else bias
                self.made[key]["b"] = rounded["b"] - to_tensor(real)
        return self.made[key]

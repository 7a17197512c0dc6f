"""Measure a plan before anything is built: fake-quantised execution, compared with the float network."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from passes.analysis.calibrate_ranges import check_inputs
from passes.analysis.candidate_weights import CandidateWeights
from passes.analysis.layer_inputs import separate_layer_inputs
from passes.analysis.subjects import rounding_grids
from passes.structure import Structure
from qcompile.errors import DataError
from qcompile.exec.tensors import Tensor, fake_quantize, inference, to_numpy
from qcompile.exec.torch_exec import TorchGraph, parts_of
from qcompile.exec.torch_loss import OutputLoss, output_losses, total_loss, with_variances
from qcompile.ir import Array, Graph, Grid
from qcompile.pm.facts import BitChoice, Range


@dataclass(frozen=True, slots=True)
class Measurement:
    """Attributes:
    loss: mean over samples of KL(float ‖ quantised) for class scores, else of half the mean squared error in
        units of the output's variance; summed over outputs.
    agreement: share of samples whose largest class (position-wise for images) is the float network's.
    each: loss of each sample, float64 (n,).
    """

    loss: float
    agreement: float
    each: NDArray[np.float64] = field(compare=False, repr=False)


class Simulator:
    """Runs plans in float32 with every rounding of `integerize` except that of multipliers and biases.

    A grid group is rounded at the bits of the layers that read it; at 8 bits where others read it too (its
    layers then read a copy at their bits) or no layer does; groups that only show outputs are not rounded.
    Weights and biases are those in the note of candidates where there is one, else weights are rounded to nearest.
    Biases are not brought to integers.  The float outputs are computed once.

    Args:
        graph: canonical float graph.
        ranges: by grid group.
        batches: samples, arrays by input name; kept.

    Raises:
        DataError: there are no samples, or they do not fit the inputs.
    """

    def __init__(self, graph: Graph, ranges: Mapping[str, Range], batches: Iterable[Mapping[str, Array]]) -> None:
        self.graph, self.ranges = graph, ranges
        self.structure = Structure(graph)
        view = separate_layer_inputs(graph, self.structure)
        self.copies = view.copies
        self.runner = TorchGraph(view.graph)
        self.batches = [part for batch in batches for part in parts_of(graph, check_inputs(graph, batch))]
        if not self.batches:
            raise DataError("there are no samples to measure plans on")
        with inference():
            self.float_outputs: list[dict[str, Tensor]] = [dict(self.runner.run(x)) for x in self.batches]
        self.losses: dict[str, OutputLoss] = with_variances(output_losses(graph), self.float_outputs)
        self.weights = CandidateWeights(graph)

    def loss(self, bits: Mapping[str, BitChoice]) -> float:
        """The mean loss of a plan (by layer); layers of one group must have the same activation bits."""
        return self.measure(bits).loss

    def measure(self, bits: Mapping[str, BitChoice]) -> Measurement:
        """Loss and agreement of a plan; accumulated in float64."""
        losses, agreement = [], 0.0
        for outputs, reference in zip(self._outputs(bits), self.float_outputs, strict=True):
            losses.append(to_numpy(total_loss(self.losses, outputs, reference)).astype(np.float64))
            agreement += sum(
                float(own.agreement(outputs[name], reference[name]).sum()) * own.weight
                for name, own in self.losses.items()
            )
        each = np.concatenate(losses)
        return Measurement(sum(float(part.sum()) for part in losses) / len(each), agreement / len(each), each)

    def outputs(self, bits: Mapping[str, BitChoice]) -> dict[str, Array]:
        """The plan's outputs on all samples, float32, by output name."""
        runs = list(self._outputs(bits))
        return {name: np.concatenate([to_numpy(run[name]) for run in runs]) for name in self.losses}

    def _outputs(self, bits: Mapping[str, BitChoice]) -> Iterable[dict[str, Tensor]]:
        grids = self.grids(bits)

        def quantize(value: str, x: Tensor) -> Tensor:
            return fake_quantize(x, grids[value]) if value in grids else x

        chosen = {layer: self.weights(layer, bits[layer].w) for layer in self.structure.layers}
        weights = {layer: consts["w"] for layer, consts in chosen.items()}
        biases = {layer: consts["b"] for layer, consts in chosen.items() if "b" in consts}
        for batch in self.batches:
            with inference():
                outputs = dict(self.runner.run(batch, quantize=quantize, weights=weights, biases=biases))
            yield outputs

    def grids(self, bits: Mapping[str, BitChoice]) -> dict[str, Grid]:
        """The grid on which each value (or layers' copy of it) is rounded under a plan."""
        return rounding_grids(self.structure, self.copies, self.ranges, bits)

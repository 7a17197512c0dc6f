"""Calibration inputs from a network's own BatchNorm statistics, for users who have no data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from qcompile.exec.torch_exec import TorchGraph
from qcompile.ir import Array, Graph

UNITS = (0.25, 0.5, 1.0, 2.0, 64.0)
"""Deviations of the inputs that are tried: normalised pictures have about 1, raw grey levels about 64."""

OFFSETS = (0.0, 2.0)
"""Means that are tried, in deviations: pictures that were not centred lie about two deviations above 0."""


class _Statistics:
    """How far a batch's statistics are from those the BatchNorm layers remember."""

    def __init__(self, graph: Graph) -> None:
        self.model = TorchGraph(graph)
        self.wanted: list[tuple[str, Tensor, Tensor]] = []
        for node in graph.nodes:
            if node.op == "batch_norm":
                mean, var = (torch.tensor(np.array(graph.const(node, role))) for role in ("mean", "var"))
                self.wanted.append((node.inputs[0], mean, (var + node.attrs.float("eps")).sqrt()))
        self.keep: Sequence[str] = tuple(dict.fromkeys(value for value, _, _ in self.wanted))

    def __call__(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Σ over layers of the mean squared difference of channel means and deviations, in stored deviations."""
        values = self.model.run(inputs, keep=self.keep)
        loss = torch.zeros(())
        for value, mean, deviation in self.wanted:
            x = values[value]
            axes = [i for i in range(x.dim()) if i != 1]
            loss = loss + ((x.mean(axes) - mean) / deviation).square().mean()
            loss = loss + ((x.std(axes) - deviation) / deviation).square().mean()
        return loss


def distill_inputs(
    graph: Graph, starts: Sequence[Mapping[str, Array]], steps: int = 40, rate: float = 0.05
) -> dict[str, Array]:
    """Inputs whose activations have the means and deviations that the BatchNorm layers remember.

    First the noise, its unit and its offset that bring the statistics closest are found: nothing else says whether a
    network takes numbers around 0 or grey levels.  Then Adam moves every number (ZeroQ, Cai et al. 2020, section 3.1).

    Args:
        graph: float graph that still holds `batch_norm` nodes.
        starts: several kinds of noise; float32 (n, …) by input name, of mean 0 and deviation 1.
        rate: of Adam, in units of the inputs.

    Returns:
        float32 arrays of the same shapes.

    Raises:
        ValueError: the graph has no BatchNorm.
    """
    statistics = _Statistics(graph)
    if not statistics.wanted:
        raise ValueError("there is no BatchNorm to fit inputs to")
    kinds = [{name: torch.tensor(x) for name, x in start.items()} for start in starts]
    trials = [(noise, unit, offset) for noise in kinds for unit in UNITS for offset in OFFSETS]
    with torch.no_grad():
        losses = [
            float(statistics({n: unit * (x + offset) for n, x in noise.items()})) for noise, unit, offset in trials
        ]
    noise, unit, offset = trials[int(np.nanargmin(losses))]
    moved = {name: (x + offset).requires_grad_() for name, x in noise.items()}
    optimizer = torch.optim.Adam(list(moved.values()), lr=rate)
    for _ in range(steps):
        optimizer.zero_grad()
        statistics({name: unit * x for name, x in moved.items()}).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return {name: (unit * x).detach().numpy() for name, x in moved.items()}

"""Calibration inputs from a network's own BatchNorm statistics, for users who have no data."""

from __future__ import annotations

import numpy as np

from qcompile.exec.torch_exec import TorchGraph
from qcompile.ir import Array, Graph


def distill_inputs(graph: Graph, start: dict[str, Array], steps: int = 40, rate: float = 0.1) -> dict[str, Array]:
    """Inputs whose activations have the means and deviations that the BatchNorm layers remember.

    Minimises Σ over BatchNorm layers of the squared differences of channel means and deviations, relative to the
    stored deviation, by Adam from `start` (ZeroQ, Cai et al. 2020, section 3.1).

    Args:
        graph: float graph that still holds `batch_norm` nodes.
        start: float32 (n, …) by input name.

    Returns:
        float32 arrays of the same shapes; `start` itself where the graph has no BatchNorm.
    """
    import torch

    norms = [node for node in graph.nodes if node.op == "batch_norm"]
    if not norms:
        return start
    model = TorchGraph(graph)
    inputs = {name: torch.tensor(x, requires_grad=True) for name, x in start.items()}
    wanted = []
    for node in norms:
        mean, var = (torch.tensor(np.array(graph.const(node, role))) for role in ("mean", "var"))
        wanted.append((node.inputs[0], mean, (var + node.attrs.float("eps")).sqrt()))
    optimizer = torch.optim.Adam(list(inputs.values()), lr=rate)
    keep = tuple(dict.fromkeys(value for value, _, _ in wanted))
    for _ in range(steps):
        optimizer.zero_grad()
        values = model.run(inputs, keep=keep)
        loss = torch.zeros(())
        for value, mean, deviation in wanted:
            x = values[value]
            axes = [i for i in range(x.dim()) if i != 1]
            loss = loss + ((x.mean(axes) - mean) / deviation).square().mean()
            loss = loss + ((x.std(axes) - deviation) / deviation).square().mean()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return {name: x.detach().numpy() for name, x in inputs.items()}

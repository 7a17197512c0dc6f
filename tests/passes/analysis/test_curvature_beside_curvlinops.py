"""Traces and products with the Hessian beside those of curvlinops, an independent implementation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_estimate_hessian_trace import DATA, N, context, estimate, forward, residual_net
from torch import nn

from passes.analysis.estimate_hessian_trace import EstimateHessianTrace
from passes.analysis.estimate_top_eigenvalue import EstimateTopEigenvalue
from qcompile.pm.facts import TOP_EIGENVALUE

curvlinops = pytest.importorskip("curvlinops", reason="curvlinops-for-pytorch is not installed")

LAYERS = {"l1": "w1", "l2": "w2", "l3": "w3"}
LABELS = np.random.default_rng(1).integers(0, 4, N)


class Net(nn.Module):
    """The residual network of the trace tests, its weights as parameters in float64."""

    def __init__(self) -> None:
        super().__init__()
        for layer, key in LAYERS.items():
            self.register_parameter(layer, nn.Parameter(torch.tensor(DATA[key]).double()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        zeros = {"x": torch.zeros(5), "r1": torch.zeros(6), "r2": torch.zeros(6)}
        return forward(x, dict(self.named_parameters()), zeros)


def blocks(operator: str) -> dict[str, torch.Tensor]:
    """Diagonal block of each layer of curvlinops's Hessian or Gauss-Newton matrix of the cross-entropy."""
    net = Net()
    data = [(torch.tensor(DATA["x"]).double(), torch.tensor(LABELS))]
    made = getattr(curvlinops, operator)(net, nn.CrossEntropyLoss(), list(net.parameters()), data)
    whole = made @ torch.eye(made.shape[1], dtype=torch.float64)
    sizes = [p.numel() for p in net.parameters()]
    starts = np.cumsum([0, *sizes])
    return {k: whole[a : a + n, a : a + n] for k, a, n in zip(LAYERS, starts, sizes, strict=False)}


@pytest.mark.parametrize(
    ("operator", "pass_", "labels"),
    [
        ("HessianLinearOperator", EstimateHessianTrace(method="hvp", probes=300, tolerance=0.0), LABELS),
        ("GGNLinearOperator", EstimateHessianTrace(probes=150, tolerance=0.0), None),
    ],
)
def test_traces(operator: str, pass_: EstimateHessianTrace, labels: np.ndarray | None) -> None:
    """With labels the Hessian itself; without them its Gauss-Newton matrix, which does not depend on labels."""
    found, _ = estimate(pass_, context(labels))
    for layer, block in blocks(operator).items():
        theirs = float(block.trace()) / len(block)
        assert abs(found[layer].mean - theirs) < 4 * found[layer].standard_error + 1e-6 * theirs, layer
        assert found[layer].standard_error < 0.25 * theirs


def test_top_eigenvalues() -> None:
    """At the float network the label-free loss has the Gauss-Newton matrix as its Hessian."""
    ours = EstimateTopEigenvalue(samples=N, iterations=400, tolerance=1e-7).run(residual_net(), context()).graph
    for layer, block in blocks("GGNLinearOperator").items():
        theirs = float(torch.linalg.eigvalsh(block).max())
        assert ours.notes[TOP_EIGENVALUE][layer].value == pytest.approx(theirs, rel=1e-3)

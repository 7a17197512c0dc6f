"""Probes of the loss's Hessian with respect to all weights and all layer inputs at once.

Both kinds of probe yield, for each block of variables, a number whose expectation is the trace of its
diagonal block summed over samples; the blocks off the diagonal vanish in expectation (Hutchinson 1990, as in
HAWQ-V2, section 3).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from qcompile.exec.tensors import to_tensor
from qcompile.exec.torch_exec import TorchGraph
from qcompile.exec.torch_loss import CLASSES, PROBABILITIES, OutputLoss, random_signs, total_loss
from qcompile.ir import Array


@dataclass(frozen=True, slots=True)
class BlockSums:
    """Trace estimates summed over the samples of a batch: by layer, and by the value layers read."""

    weights: dict[str, float]
    values: dict[str, float]


class HessianProbe:
    """Draws probes on one graph.

    Args:
        runner: the float graph.
        weights: layer → its weights; one block each.
        values: names of values; one block each, all positions of one sample.
        losses: by output name.
        seed: of the signs; the same seed draws the same probes.
    """

    def __init__(
        self,
        runner: TorchGraph,
        weights: Mapping[str, Array],
        values: Sequence[str],
        losses: Mapping[str, OutputLoss],
        seed: int,
    ) -> None:
        self.runner, self.losses = runner, losses
        self.weights = {name: to_tensor(w).requires_grad_() for name, w in weights.items()}
        self.values = frozenset(values)
        self.generator = torch.Generator().manual_seed(seed)

    def restart(self, seed: int) -> None:
        """Draw anew from a seed."""
        self.generator.manual_seed(seed)

    def gauss_newton(self, x: Mapping[str, Array]) -> BlockSums:
        """One backward pass: ‖Jᵀv‖² with v of covariance ∂²loss/∂outputs², so E‖Jᵀv‖² = Tr(Jᵀ ∂²loss J).

        This is the trace of the Gauss-Newton matrix, which equals the Hessian at the float network (the
        loss's gradient is 0 there) and the Fisher matrix of a softmax.  It is never negative and costs a
        third of a Hessian-vector product.  Samples draw independent v, so their gradients' cross terms vanish
        as well.
        """
        z, taps = self._run(x)
        roots = [loss.hessian_root(z[name].detach(), self._signs(z[name])) for name, loss in self.losses.items()]
        scores = [loss.scores(z[name]) for name, loss in self.losses.items()]
        blocks = [*self.weights.values(), *taps.values()]
        grads = torch.autograd.grad(scores, blocks, roots, materialize_grads=True)
        return self._sums(taps, [float(g.square().sum(dtype=torch.float64)) for g in grads])

    def hessian(self, x: Mapping[str, Array], labels: Array | None = None) -> BlockSums:
        """One Hessian-vector product by double backward: s·Hs with independent signs s for every variable.

        With labels the loss is the cross-entropy (whose Hessian may be indefinite: single estimates can be
        negative), without them the divergence from the network's own outputs.
        """
        z, taps = self._run(x)
        n = len(next(iter(z.values())))
        total = torch.zeros((), dtype=torch.float32)
        for name, loss in self.losses.items():
            if labels is not None and loss.kind in (CLASSES, PROBABILITIES):
                total = total + loss.cross_entropy(z[name], torch.as_tensor(np.asarray(labels)).long()).mean()
            else:
                total = total + loss(z[name], z[name].detach()).mean()
        blocks = [*self.weights.values(), *taps.values()]
        grads = torch.autograd.grad(total, blocks, create_graph=True, materialize_grads=True)
        signs = [self._signs(block) for block in blocks]
        products = torch.autograd.grad(grads, blocks, signs, materialize_grads=True)
        return self._sums(
            taps, [n * float((s * h).sum(dtype=torch.float64)) for s, h in zip(signs, products, strict=True)]
        )

    def _run(self, x: Mapping[str, Array]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Outputs, and a zero tensor added to each value: the variable its block is about."""
        taps: dict[str, Tensor] = {}

        def tap(value: str, tensor: Tensor) -> Tensor:
            if value not in self.values:
                return tensor
            taps[value] = torch.zeros_like(tensor, requires_grad=True)
            return tensor + taps[value]

        return dict(self.runner.run(x, quantize=tap, weights=self.weights)), taps

    def _signs(self, like: Tensor) -> Tensor:
        return random_signs(like, self.generator)

    def _sums(self, taps: Mapping[str, Tensor], sums: Sequence[float]) -> BlockSums:
        split = len(self.weights)
        return BlockSums(dict(zip(self.weights, sums[:split], strict=True)), dict(zip(taps, sums[split:], strict=True)))


class LayerHessian:
    """The Hessian of the mean label-free loss in one layer's weights, as a linear map.

    Args:
        runner: the float graph.
        layer: name of a conv2d or linear node.
        losses: by output name.
        batches: samples, arrays by input name.
    """

    def __init__(
        self,
        runner: TorchGraph,
        layer: str,
        losses: Mapping[str, OutputLoss],
        batches: Sequence[Mapping[str, Array]],
    ) -> None:
        self.runner, self.layer, self.losses, self.batches = runner, layer, losses, batches
        self.count = sum(len(next(iter(batch.values()))) for batch in batches)

    def times(self, v: Tensor) -> Tensor:
        """H v, for v of the weights' shape; one double backward per batch."""
        found = torch.zeros_like(v)
        for batch in self.batches:
            w = self.runner.weights[self.layer].detach().clone().requires_grad_()
            z = self.runner.run(batch, weights={self.layer: w})
            loss = total_loss(self.losses, z, {name: output.detach() for name, output in z.items()}).sum()
            (gradient,) = torch.autograd.grad(loss, w, create_graph=True)
            (product,) = torch.autograd.grad(gradient, w, v)
            found += product
        return found / self.count

    def top_eigenvalue(self, start: Array, iterations: int, tolerance: float) -> dict[str, Array]:
        """`value`, `iterations` and the relative `change` of the last one, by power iteration from `start`."""
        v = to_tensor(start)
        v = v / v.norm()
        value, change, done = 0.0, float("inf"), 0
        while done < iterations and change >= tolerance:
            done += 1
            product = self.times(v)
            before, value = value, float((v * product).sum(dtype=torch.float64))
            change = abs(value - before) / (abs(value) + 1e-6)
            length = float(product.norm())
            if length == 0:
                break
            v = product / length
        return {"value": np.array(value), "iterations": np.array(done), "change": np.array(change)}

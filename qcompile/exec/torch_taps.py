"""Derivatives of the label-free loss with respect to values inside the float network, sample by sample."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from qcompile.exec.torch_exec import TorchGraph, evaluate
from qcompile.exec.torch_loss import CLASSES, PROBABILITIES, OutputLoss, random_signs, total_loss
from qcompile.ir import Array


class Taps:
    """The float network with a zero added to each of some values: the variables derivatives are taken in.

    Args:
        runner: the float graph.
        values: names of values.
        losses: by output name.
    """

    def __init__(self, runner: TorchGraph, values: Sequence[str], losses: Mapping[str, OutputLoss]) -> None:
        self.runner, self.losses, self.names = runner, losses, frozenset(values)
        self.generator = torch.Generator()

    def restart(self, seed: int) -> None:
        """Draw anew from a seed."""
        self.generator.manual_seed(seed)

    def values(self, x: Mapping[str, Array]) -> dict[str, Tensor]:
        """The tapped values alone."""
        with torch.no_grad():
            return self._run(x)[0]

    def gradients(self, x: Mapping[str, Array], draws: int) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
        """Values and gradients of random scores whose outer product has the Gauss-Newton matrix as its mean.

        With v of covariance ∂²loss/∂outputs² (see `OutputLoss.hessian_root`) the gradients g = Jᵀv have the
        covariance Jᵀ ∂²loss J, the Hessian at the float network: the true Fisher matrix, without labels.

        Returns:
            Values (n, …) by name, and for each draw the gradients of each sample, of the same shapes.
        """
        values, taps, z = self._run(x)
        scores = [loss.scores(z[name]) for name, loss in self.losses.items()]
        found = []
        for _ in range(draws):
            roots = [
                loss.hessian_root(z[name].detach(), random_signs(z[name], self.generator))
                for name, loss in self.losses.items()
            ]
            grads = torch.autograd.grad(scores, list(taps.values()), roots, retain_graph=True, materialize_grads=True)
            found.append(dict(zip(taps, grads, strict=True)))
        return values, found

    def label_gradients(self, x: Mapping[str, Array], labels: Array) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Values, and gradients of each sample's cross-entropy with its label: those of the empirical Fisher matrix."""
        values, taps, z = self._run(x)
        wanted = torch.as_tensor(np.asarray(labels)).long()
        total = torch.zeros(())
        for name, loss in self.losses.items():
            if loss.kind in (CLASSES, PROBABILITIES):
                total = total + loss.cross_entropy(z[name], wanted).sum()
        grads = torch.autograd.grad(total, list(taps.values()), materialize_grads=True)
        return values, dict(zip(taps, grads, strict=True))

    def hessian(self, x: Mapping[str, Array], directions: Sequence[tuple[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
        """The Hessian of the loss summed over samples times each direction, by double backward.

        Args:
            x: a batch.
            directions: (value, change of it (n, …)).

        Yields:
            For each direction the product's part in every tapped value.
        """
        _, taps, z = self._run(x)
        total = total_loss(self.losses, z, {name: output.detach() for name, output in z.items()}).sum()
        blocks = list(taps.values())
        grads = dict(
            zip(taps, torch.autograd.grad(total, blocks, create_graph=True, materialize_grads=True), strict=True)
        )
        for value, direction in directions:
            if not grads[value].requires_grad:
                yield {name: torch.zeros_like(tap) for name, tap in taps.items()}
                continue
            product = torch.autograd.grad(grads[value], blocks, direction, retain_graph=True, materialize_grads=True)
            yield dict(zip(taps, product, strict=True))

    def _run(self, x: Mapping[str, Array]) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
        """Values, taps and outputs."""
        values: dict[str, Tensor] = {}
        taps: dict[str, Tensor] = {}

        def tap(value: str, tensor: Tensor) -> Tensor:
            if value not in self.names:
                return tensor
            values[value] = tensor.detach()
            taps[value] = torch.zeros_like(tensor, requires_grad=True)
            return tensor + taps[value]

        return values, taps, dict(self.runner.run(x, quantize=tap))


def response(runner: TorchGraph, layer: str, x: Tensor, consts: Mapping[str, Tensor]) -> Tensor:
    """A layer's output for other constants (those not given are left out) or another input."""
    node = runner.graph.by_name[layer]
    with torch.no_grad():
        return evaluate(node, [x], consts)


def inner(a: Tensor, b: Tensor) -> Tensor:
    """Inner products sample by sample, float64 (n,)."""
    return (a * b).flatten(1).sum(dim=1, dtype=torch.float64)


def mean_squares(gradients: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Squares of the elements, by name, averaged over draws."""
    return {name: torch.stack([g[name].square() for g in gradients]).mean(dim=0) for name in gradients[0]}


def weight_gradients(runner: TorchGraph, layer: str, x: Tensor, gradient: Tensor) -> dict[str, Tensor]:
    """Derivatives in a layer's weights and in its bias (also where it has none), given those in its output."""
    node = runner.graph.by_name[layer]
    w = runner.weights[layer].detach().requires_grad_()
    b = torch.zeros(len(w), requires_grad=True)
    output = evaluate(node, [x], {"w": w, "b": b})
    return dict(zip(("w", "b"), torch.autograd.grad(output, (w, b), gradient), strict=True))

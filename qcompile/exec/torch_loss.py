"""How far outputs are from the float network's: the loss that sensitivities and plans are measured by.

It needs no labels.  Where an output holds class scores it is the Kullback-Leibler divergence of the softmax,
else half the mean squared error in units of the output's variance.  Both have their minimum, 0, at the float
network, so their gradient vanishes there and their Hessian is positive semi-definite.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from qcompile.ir import Graph

CLASSES, PROBABILITIES, VALUES = "classes", "probabilities", "values"


@dataclass(frozen=True, slots=True)
class OutputLoss:
    """The loss of one output.

    Attributes:
        kind: CLASSES (scores before a softmax), PROBABILITIES (behind it) or VALUES.
        variance: of the output's elements; the unit of VALUES.
        weight: share of this output in the sum over outputs.
    """

    kind: str
    variance: float = 1.0
    weight: float = 1.0

    def scores(self, z: Tensor) -> Tensor:
        """Class scores (n, k) of an output."""
        return z.clamp_min(1e-30).log() if self.kind == PROBABILITIES else z

    def __call__(self, z: Tensor, reference: Tensor) -> Tensor:
        """The weighted loss of each sample, shape (n,), ≥ 0."""
        if self.kind == VALUES:
            error = (z - reference).square().flatten(1).mean(dim=1)
            return torch.mul(error, self.weight * 0.5 / self.variance)
        return torch.mul(_divergence(self.scores(reference), self.scores(z)), self.weight)

    def softened(self, z: Tensor, reference: Tensor, temperature: float) -> Tensor:
        """The same of softer answers, whose scores are divided by a temperature, times its square (Hinton et al. 2015).

        So small changes of the scores cost about the same, but of samples the network is sure of they cost something
        too.  VALUES have no temperature.
        """
        if self.kind == VALUES:
            return self(z, reference)
        p, q = (self.scores(x) / temperature for x in (reference, z))
        return torch.mul(_divergence(p, q), self.weight * temperature**2)

    def cross_entropy(self, z: Tensor, labels: Tensor) -> Tensor:
        """The weighted cross-entropy of each sample with integer labels (n,); only for class outputs."""
        return self.weight * F.cross_entropy(self.scores(z), labels, reduction="none")

    def hessian_root(self, z: Tensor, signs: Tensor) -> Tensor:
        """A vector v (z's shape) with E[v vᵀ] = ∂²loss/∂scores² per sample, from independent signs ±1.

        For class scores the Hessian is diag(p) − p pᵀ, and v = (diag(√p) − p √pᵀ) s has exactly this
        covariance.  Labels sampled from p have it too, but where the network is sure of its answer they are
        all alike and the estimate hangs on rare draws; the signs spread it evenly.
        """
        if self.kind == VALUES:
            return torch.mul(signs, (self.weight / (self.variance * (z.numel() / len(z)))) ** 0.5)
        p = self.scores(z).softmax(dim=1)
        q = p.sqrt() * signs
        return torch.mul(q - p * q.sum(dim=1, keepdim=True), self.weight**0.5)

    def agreement(self, z: Tensor, reference: Tensor) -> Tensor:
        """Share of positions whose largest channel is the same, per sample (n,)."""
        same = z.argmax(dim=1) == reference.argmax(dim=1)
        return same.double().reshape(len(same), -1).mean(dim=1)


def _divergence(reference: Tensor, z: Tensor) -> Tensor:
    """KL(softmax(reference) ‖ softmax(z)) of scores (n, k), shape (n,)."""
    log_p, log_q = F.log_softmax(reference, dim=1), F.log_softmax(z, dim=1)
    return (log_p.exp() * (log_p - log_q)).sum(dim=1)


def random_signs(like: Tensor, generator: torch.Generator) -> Tensor:
    """Independent ±1 of a tensor's shape and dtype."""
    drawn = torch.randint(0, 2, like.shape, generator=generator, dtype=torch.int8)
    return drawn.to(like.dtype) * 2 - 1


def output_losses(graph: Graph) -> dict[str, OutputLoss]:
    """The loss of each output by name: a vector per sample holds class scores unless it has an input's shape.

    An output shaped like an input is a reconstruction (an autoencoder's), not a score per class.
    """
    shapes = {port.type.shape for port in graph.inputs}
    found = {}
    for out in graph.outputs:
        type_ = graph.type_of(out.value)
        kind = CLASSES if type_.rank == 2 and type_.numel > 1 and type_.shape not in shapes else VALUES
        node = graph.by_name.get(out.value)
        if kind == CLASSES and node is not None and node.op == "softmax":
            kind = PROBABILITIES
        found[out.name] = OutputLoss(kind, weight=1 / len(graph.outputs))
    return found


class Spread:
    """Running variance of the outputs, over batches, in float64."""

    def __init__(self) -> None:
        self.count, self.sum, self.square = 0, 0.0, 0.0

    def add(self, z: Tensor) -> None:
        self.count += z.numel()
        self.sum += float(z.double().sum())
        self.square += float(z.double().square().sum())

    @property
    def variance(self) -> float:
        """At least a rounding error of the outputs' magnitude, never 0."""
        mean_square = self.square / max(self.count, 1)
        return max(mean_square - (self.sum / max(self.count, 1)) ** 2, 1e-12 * mean_square, 1e-30)


def with_variances(losses: Mapping[str, OutputLoss], outputs: Iterable[Mapping[str, Tensor]]) -> dict[str, OutputLoss]:
    """The losses with the variances of the float outputs set."""
    spreads = {name: Spread() for name in losses}
    for batch in outputs:
        for name, spread in spreads.items():
            spread.add(batch[name])
    return {name: replace(loss, variance=spreads[name].variance) for name, loss in losses.items()}


def total_loss(
    losses: Mapping[str, OutputLoss],
    z: Mapping[str, Tensor],
    reference: Mapping[str, Tensor],
    temperature: float | None = None,
) -> Tensor:
    """The loss of each sample summed over outputs, float64, shape (n,); with a temperature that of softened answers."""
    parts = []
    for name, loss in losses.items():
        both = z[name].double(), reference[name].double()
        parts.append(loss(*both) if temperature is None else loss.softened(*both, temperature))
    return torch.stack(parts).sum(dim=0)

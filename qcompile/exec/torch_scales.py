"""Scales and biases of all layers of a network at once, so that its outputs stay those of the float network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qcompile.exec.torch_teacher import Teacher
from qcompile.ir import Array

Tuned = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Scale and bias of each output channel, (O,)."""

Rounding = tuple[Array, Tuned]
"""Integers int8 in the weights' shape, with their scale and bias."""


@dataclass(frozen=True, slots=True)
class ScaleSchedule:
    """Attributes:
    epochs: passes over the samples; 0 changes nothing.
    batch: samples a step.
    scales: rate of Adam for scales, in their logarithms.
    biases: the same for biases, in deviations of the layer's output.
    temperature: of the answers compared (see `OutputLoss.softened`): what is learnt of soft ones holds elsewhere too.
    """

    epochs: int = 4
    batch: int = 16
    scales: float = 3e-4
    biases: float = 1e-3
    temperature: float = 3.0


class _Layer:
    """Fixed integers with a scale and a bias for each output channel."""

    def __init__(self, q: Array, start: Tuned, unit: Tensor) -> None:
        self.start = start
        self.q, self.unit = torch.tensor(q, dtype=torch.float32), unit
        self.across = (-1, *[1] * (q.ndim - 1))
        self.scale, self.b = (torch.tensor(values, dtype=torch.float32) for values in start)
        self.stretch = torch.zeros_like(self.scale).requires_grad_()
        self.shift = torch.zeros_like(self.b).requires_grad_()

    def made(self) -> tuple[Tensor, Tensor]:
        scale = (self.scale * self.stretch.exp()).reshape(self.across)
        return self.q * scale, self.b + self.shift * self.unit

    def result(self) -> Tuned:
        stretch, shift, unit = (x.detach().double().numpy() for x in (self.stretch, self.shift, self.unit))
        scale, b = self.start
        return scale * np.exp(stretch), b + shift * unit


@dataclass(frozen=True)
class Outcome:
    """Attributes:
    layers: scale and bias by layer.
    before, after: mean divergence of all samples; equal where nothing was found.
    """

    layers: dict[str, Tuned]
    before: float
    after: float


def tune_scales(
    teacher: Teacher,
    integers: Mapping[str, Rounding],
    schedule: ScaleSchedule,
    seed: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Outcome:
    """Scales and biases with which the network's outputs are closest to the float network's; integers stay.

    Those to begin with, where the result is not better on the samples.  The same for the same seed on one machine.

    Args:
        teacher: samples, right answers and loss.
        integers: of every weighted layer, with the scale and the bias to begin with.
    """
    units = teacher.deviations(list(integers))
    layers = {name: _Layer(*given, unit) for (name, given), unit in zip(integers.items(), units, strict=True)}
    before = _judged(teacher, layers)
    groups = [
        {"params": [layer.stretch for layer in layers.values()], "lr": schedule.scales},
        {"params": [layer.shift for layer in layers.values()], "lr": schedule.biases},
    ]
    optimizer = torch.optim.Adam(groups)

    def make() -> dict[str, tuple[Tensor, Tensor]]:
        return {name: layer.made() for name, layer in layers.items()}

    for chosen, side, _ in teacher.steps(optimizer, schedule.epochs, schedule.batch, seed, progress):
        teacher.descend(make, chosen, side, schedule.temperature)
        optimizer.step()
    after = _judged(teacher, layers) if schedule.epochs else before
    if not after < before:
        return Outcome({name: given for name, (_, given) in integers.items()}, before, before)
    return Outcome({name: layer.result() for name, layer in layers.items()}, before, after)


def mean_loss(teacher: Teacher, integers: Mapping[str, Rounding]) -> float:
    """The mean loss of all samples with these integers, scales and biases."""
    nothing = torch.zeros(1)
    return _judged(teacher, {name: _Layer(*given, nothing) for name, given in integers.items()})


def _judged(teacher: Teacher, layers: Mapping[str, _Layer]) -> float:
    with torch.no_grad():
        return teacher.mean({name: layer.made() for name, layer in layers.items()})

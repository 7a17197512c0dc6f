"""DiscQuant: all integers of a network at once, chosen so that its outputs stay those of the float network."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qcompile.exec.torch_teacher import Teacher
from qcompile.ir import Array


@dataclass(frozen=True, slots=True, eq=False)
class LayerIntegers:
    """Attributes:
    q: integers to begin with, the weights' shape, from `bottom` to `top`.
    scale: float64 (O,).
    b: bias in real units, float64 (O,).
    bottom, top: smallest and largest integer.
    aim: real weights the integers stand for, float64.
    """

    q: Array
    scale: NDArray[np.float64]
    b: NDArray[np.float64]
    bottom: int
    top: int
    aim: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Schedule:
    """Attributes:
    epochs: passes over the samples; 0 changes nothing.
    batch: samples a step.
    rate: of Adam for the interpolated weights, in steps of the grid.
    biases: of Adam for biases, in deviations of the layer's output.
    clamp: largest gradient of the divergence.
    pull: largest gradient of the distance to the real weights, reached at the end; it grows with the square of time.
    """

    epochs: int = 8
    batch: int = 16
    rate: float = 0.02
    biases: float = 0.0005
    clamp: float = 1.0
    pull: float = 0.1


class _Layer:
    """A layer's weights between the integers below and above the real ones: x in [0, 1], and its bias."""

    def __init__(self, start: LayerIntegers, unit: Tensor) -> None:
        self.scale = torch.tensor(start.scale.reshape(-1, *[1] * (start.q.ndim - 1)), dtype=torch.float32)
        self.q = torch.tensor(start.q, dtype=torch.float32)
        real = torch.tensor(start.aim, dtype=torch.float32) / self.scale
        # The grid of two integers holds the one to begin with, even where that is not the nearest.
        self.low = torch.minimum(real.floor().clamp(start.bottom, start.top - 1), self.q)
        self.low = torch.where(self.q > self.low + 1, self.q - 1, self.low)
        y = (real - self.low).clamp(0, 1)
        self.pull = 1 - 2 * y
        self.x = y.clone().requires_grad_()
        self.b0, self.unit = torch.tensor(start.b, dtype=torch.float32), unit
        self.shift = torch.zeros_like(self.b0).requires_grad_()

    def weights(self, x: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return (self.low + (self.x if x is None else x)) * self.scale, self.b0 + self.shift * self.unit

    def result(self) -> tuple[Array, NDArray[np.float64]]:
        """Integers and bias; ties go to the integer above."""
        with torch.no_grad():
            q = (self.low + (self.x >= 0.5)).to(torch.int8).numpy()
            return q, (self.b0.double() + self.shift.double() * self.unit.double()).numpy()


class Tuner:
    """Tunes all layers of a float graph at once.

    Source: Chee et al. 2025 (DiscQuant): gradient of the distance to the real weights, 1 − 2y, plus that of the
    divergence, clamped; projection onto [0, 1]; rounding at the end.  Here the divergence's gradient is measured in
    its root mean square at the integers to begin with.

    Args:
        teacher: samples, right answers and loss.
        start: integers to begin with, by layer; every weighted layer.
    """

    def __init__(self, teacher: Teacher, start: Mapping[str, LayerIntegers]) -> None:
        self.teacher, self.start = teacher, start

    def run(
        self, schedule: Schedule, seed: int, progress: Callable[[int, int], None] = lambda done, total: None
    ) -> dict[str, tuple[Array, NDArray[np.float64]]]:
        """Integers int8 and biases float64 by layer; the same for the same seed on one machine.

        Those to begin with, where the result is not better on the samples.
        """
        given = {name: (layer.q.astype(np.int8), layer.b) for name, layer in self.start.items()}
        if not schedule.epochs:
            return given
        teacher, units = self.teacher, self.teacher.deviations(list(self.start))
        layers = {name: _Layer(start, unit) for (name, start), unit in zip(self.start.items(), units, strict=True)}
        groups = [
            {"params": [layer.x for layer in layers.values()], "lr": schedule.rate},
            {"params": [layer.shift for layer in layers.values()], "lr": schedule.biases},
        ]
        optimizer = torch.optim.Adam(groups)
        unit = self._gradient_unit(layers, schedule.batch)

        def make() -> dict[str, tuple[Tensor, Tensor]]:
            return {name: layer.weights() for name, layer in layers.items()}

        for chosen, side, done in teacher.steps(optimizer, schedule.epochs, schedule.batch, seed, progress):
            teacher.descend(make, chosen, side)
            with torch.no_grad():
                for layer in layers.values():
                    if layer.x.grad is not None:
                        layer.x.grad.div_(unit).clamp_(-schedule.clamp, schedule.clamp)
                        layer.x.grad.add_(layer.pull, alpha=schedule.pull * done**2)
            optimizer.step()
            with torch.no_grad():
                for layer in layers.values():
                    layer.x.clamp_(0, 1)
        found = {name: layer.result() for name, layer in layers.items()}
        return found if self._judged(found) < self._judged(given) else given

    def _judged(self, integers: Mapping[str, tuple[Array, NDArray[np.float64]]]) -> float:
        """The mean divergence over all samples with these integers and biases."""
        made = {}
        for name, (q, b) in integers.items():
            scale = self.start[name].scale.reshape(-1, *[1] * (q.ndim - 1))
            made[name] = (torch.tensor(q * scale, dtype=torch.float32), torch.tensor(b, dtype=torch.float32))
        return self.teacher.mean(made)

    def _gradient_unit(self, layers: Mapping[str, _Layer], batch: int) -> float:
        """Root mean square of the divergence's gradient in x where all weights are the integers to begin with."""
        xs = {name: (layer.q - layer.low).requires_grad_() for name, layer in layers.items()}
        made = {name: layer.weights(xs[name]) for name, layer in layers.items()}
        chosen = torch.arange(min(self.teacher.count, 2 * batch))
        found = torch.autograd.grad(self.teacher.loss(made, chosen), list(xs.values()))
        square = sum(float(g.double().square().sum()) for g in found)
        return max(math.sqrt(square / sum(g.numel() for g in found)), 1e-12)

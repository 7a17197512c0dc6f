"""DiscQuant: all integers of a network at once, chosen so that its outputs stay those of the float network.

The loss is the divergence from the float network's outputs, so it needs no labels, and any input that looks like a
sample has a right answer: pictures are mirrored in every second epoch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qcompile.exec.torch_exec import TorchGraph
from qcompile.exec.torch_loss import OutputLoss, total_loss
from qcompile.ir import Array, Graph


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
        graph: float graph.
        batches: float32 arrays by input name.
        quantize: rounds activations, as in `TorchGraph.run`; gradients pass through it.
        losses: by output name.
        start: integers to begin with, by layer; every weighted layer.
    """

    def __init__(
        self,
        graph: Graph,
        batches: Sequence[Mapping[str, Array]],
        quantize: Callable[[str, Tensor], Tensor],
        losses: Mapping[str, OutputLoss],
        start: Mapping[str, LayerIntegers],
    ) -> None:
        self.graph, self.quantize, self.losses, self.start = graph, quantize, losses, start
        self.runner = TorchGraph(graph)
        names = [port.name for port in graph.inputs]
        arrays = {name: np.concatenate([np.asarray(b[name], np.float32) for b in batches]) for name in names}
        self.inputs = {name: torch.from_numpy(array) for name, array in arrays.items()}
        self.count = len(next(iter(self.inputs.values())))

    def run(
        self, schedule: Schedule, seed: int, progress: Callable[[int, int], None] = lambda done, total: None
    ) -> dict[str, tuple[Array, NDArray[np.float64]]]:
        """Integers int8 and biases float64 by layer; the same for the same seed on one machine.

        Those to begin with, where the result is not better on the samples.
        """
        given = {name: (layer.q.astype(np.int8), layer.b) for name, layer in self.start.items()}
        if not schedule.epochs:
            return given
        layers = {
            name: _Layer(start, unit) for (name, start), unit in zip(self.start.items(), self._units(), strict=True)
        }
        generator = torch.Generator().manual_seed(seed)
        total = schedule.epochs * -(-self.count // schedule.batch)
        groups = [
            {"params": [layer.x for layer in layers.values()], "lr": schedule.rate},
            {"params": [layer.shift for layer in layers.values()], "lr": schedule.biases},
        ]
        optimizer = torch.optim.Adam(groups)
        targets = [self._targets(mirror) for mirror in ((False, True) if self._pictures() else (False,))]
        unit = self._gradient_unit(layers, targets[0], schedule.batch)
        done = 0
        for epoch in range(schedule.epochs):
            side = epoch % len(targets)
            for chosen in torch.split(torch.randperm(self.count, generator=generator), schedule.batch):
                for group, rate in zip(optimizer.param_groups, (schedule.rate, schedule.biases), strict=True):
                    group["lr"] = rate * 0.5 * (1 + math.cos(math.pi * done / total))
                optimizer.zero_grad()
                self._loss({n: layer.weights() for n, layer in layers.items()}, chosen, targets, side).backward()  # type: ignore[no-untyped-call]
                with torch.no_grad():
                    for layer in layers.values():
                        if layer.x.grad is not None:
                            layer.x.grad.div_(unit).clamp_(-schedule.clamp, schedule.clamp)
                            layer.x.grad.add_(layer.pull, alpha=schedule.pull * (done / total) ** 2)
                optimizer.step()
                with torch.no_grad():
                    for layer in layers.values():
                        layer.x.clamp_(0, 1)
                done += 1
                progress(done, total)
        found = {name: layer.result() for name, layer in layers.items()}
        return found if self._judged(found, targets[0]) < self._judged(given, targets[0]) else given

    def _judged(
        self, integers: Mapping[str, tuple[Array, NDArray[np.float64]]], targets: Mapping[str, Tensor]
    ) -> float:
        """The mean divergence over all samples with these integers and biases."""
        made = {}
        for name, (q, b) in integers.items():
            scale = self.start[name].scale.reshape(-1, *[1] * (q.ndim - 1))
            made[name] = (torch.tensor(q * scale, dtype=torch.float32), torch.tensor(b, dtype=torch.float32))
        with torch.no_grad():
            parts = torch.split(torch.arange(self.count), 32)
            return sum(float(self._loss(made, part, [targets], 0)) * len(part) for part in parts) / self.count

    def _loss(
        self,
        made: Mapping[str, tuple[Tensor, Tensor]],
        chosen: Tensor,
        targets: Sequence[Mapping[str, Tensor]],
        side: int,
    ) -> Tensor:
        weights, biases = ({name: pair[i] for name, pair in made.items()} for i in (0, 1))
        outputs = self.runner.run(self._batch(chosen, side == 1), self.quantize, weights=weights, biases=biases)
        reference = {name: x[chosen] for name, x in targets[side].items()}
        return total_loss(self.losses, outputs, reference).mean()

    def _gradient_unit(self, layers: Mapping[str, _Layer], targets: Mapping[str, Tensor], batch: int) -> float:
        """Root mean square of the divergence's gradient in x where all weights are the integers to begin with."""
        xs = {name: (layer.q - layer.low).requires_grad_() for name, layer in layers.items()}
        made = {name: layer.weights(xs[name]) for name, layer in layers.items()}
        chosen = torch.arange(min(self.count, 2 * batch))
        found = torch.autograd.grad(self._loss(made, chosen, [targets], 0), list(xs.values()))
        square = sum(float(g.double().square().sum()) for g in found)
        return max(math.sqrt(square / sum(g.numel() for g in found)), 1e-12)

    def _pictures(self) -> bool:
        return any(_is_picture(x) for x in self.inputs.values())

    def _batch(self, chosen: Tensor, mirror: bool) -> dict[str, Tensor]:
        part = {name: x[chosen] for name, x in self.inputs.items()}
        return {name: x.flip(3) if mirror and _is_picture(x) else x for name, x in part.items()}

    def _targets(self, mirror: bool) -> dict[str, Tensor]:
        """The float network's outputs on all samples."""
        with torch.no_grad():
            runs = [
                dict(self.runner.run(self._batch(part, mirror))) for part in torch.split(torch.arange(self.count), 32)
            ]
        return {name: torch.cat([run[name] for run in runs]) for name in runs[0]}

    def _units(self) -> Iterable[Tensor]:
        """The deviation of each channel of each layer's output, from the first samples."""
        with torch.no_grad():
            values = self.runner.run(self._batch(torch.arange(min(self.count, 32)), False), keep=tuple(self.start))
        for name in self.start:
            x = values[name]
            channel = 1 if x.dim() == 4 else x.dim() - 1
            rows = x.movedim(channel, 0).flatten(1)
            yield (rows - rows.mean(dim=1, keepdim=True)).square().mean(dim=1).sqrt().clamp_min(1e-6)


def _is_picture(x: Tensor) -> bool:
    """Whether an input looks like RGB images."""
    return x.dim() == 4 and x.shape[1] == 3

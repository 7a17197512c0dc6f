"""The float network as the teacher of its quantised copy: right answers for all samples.

The loss is the divergence from the float network's outputs, so it needs no labels, and any input that looks like a
sample has a right answer: pictures are mirrored in every second epoch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from qcompile.exec.torch_exec import TorchGraph, samples_together
from qcompile.exec.torch_loss import output_losses, total_loss, with_variances
from qcompile.ir import Array, Graph

Made = Mapping[str, tuple[Tensor, Tensor]]
"""Layer → weights and bias, in real units."""


class Teacher:
    """Samples, the float network's answers to them, and the loss of other weights and biases in its layers' place.

    Source: Hinton et al. 2015.

    Args:
        graph: float graph.
        batches: float32 arrays by input name.
        quantize: rounds activations, as in `TorchGraph.run`; gradients pass through it.

    Attributes:
        losses: by output name.
        count: samples.
        together: samples that are run at once.
        sides: 2 where the samples are pictures, which are mirrored in every second epoch; else 1.
    """

    def __init__(
        self,
        graph: Graph,
        batches: Sequence[Mapping[str, Array]],
        quantize: Callable[[str, Tensor], Tensor],
    ) -> None:
        self.graph, self.quantize = graph, quantize
        self.runner = TorchGraph(graph)
        self.together = min(32, samples_together(graph))
        names = [port.name for port in graph.inputs]
        arrays = {name: np.concatenate([np.asarray(b[name], np.float32) for b in batches]) for name in names}
        self.inputs = {name: torch.from_numpy(array) for name, array in arrays.items()}
        self.count = len(next(iter(self.inputs.values())))
        self.sides = 2 if any(_is_picture(x) for x in self.inputs.values()) else 1
        self._answered: dict[int, dict[str, Tensor]] = {}
        self.losses = with_variances(output_losses(graph), [self._answers(0)])

    def loss(self, made: Made, chosen: Tensor, side: int = 0, temperature: float | None = None) -> Tensor:
        """The mean loss of some samples (their numbers), mirrored where `side` is 1; see `OutputLoss.softened`."""
        weights, biases = ({name: pair[i] for name, pair in made.items()} for i in (0, 1))
        outputs = self.runner.run(self._batch(chosen, side == 1), self.quantize, weights=weights, biases=biases)
        reference = {name: x[chosen] for name, x in self._answers(side).items()}
        return total_loss(self.losses, outputs, reference, temperature).mean()

    def steps(
        self, optimizer: torch.optim.Optimizer, epochs: int, batch: int, seed: int, progress: Callable[[int, int], None]
    ) -> Iterator[tuple[Tensor, int, float]]:
        """For each step its samples, their side and the share of all steps already done; the caller steps.

        Samples are drawn anew in every epoch, the same for the same seed; pictures are mirrored in every second one.
        Rates fall from the optimizer's own to 0 in half a cosine (Loshchilov and Hutter 2017).
        """
        generator = torch.Generator().manual_seed(seed)
        rates = [group["lr"] for group in optimizer.param_groups]
        done, total = 0, epochs * -(-self.count // batch)
        for epoch in range(epochs):
            for chosen in torch.split(torch.randperm(self.count, generator=generator), batch):
                progress(done, total)
                for group, rate in zip(optimizer.param_groups, rates, strict=True):
                    group["lr"] = rate * 0.5 * (1 + math.cos(math.pi * done / total))
                optimizer.zero_grad()
                yield chosen, epoch % self.sides, done / total
                done += 1

    def descend(self, make: Callable[[], Made], chosen: Tensor, side: int, temperature: float | None = None) -> None:
        """Add the gradient of the samples' mean loss to what `make` makes weights and biases of."""
        for part in torch.split(chosen, self.together):
            (self.loss(make(), part, side, temperature) * (len(part) / len(chosen))).backward()  # type: ignore[no-untyped-call]

    def mean(self, made: Made) -> float:
        """The mean loss of all samples."""
        with torch.no_grad():
            return sum(float(self.loss(made, part)) * len(part) for part in self._parts()) / self.count

    def deviations(self, layers: Sequence[str]) -> list[Tensor]:
        """The deviation of each channel of each layer's float output, (O,), from the first samples."""
        found = []
        with torch.no_grad():
            values = self.runner.run(self._batch(torch.arange(min(self.count, 32)), False), keep=tuple(layers))
        for name in layers:
            x = values[name]
            channel = 1 if x.dim() == 4 else x.dim() - 1
            rows = x.movedim(channel, 0).flatten(1)
            found.append((rows - rows.mean(dim=1, keepdim=True)).square().mean(dim=1).sqrt().clamp_min(1e-6))
        return found

    def _answers(self, side: int) -> dict[str, Tensor]:
        """The float network's outputs on all samples, found once."""
        if side not in self._answered:
            with torch.no_grad():
                runs = [dict(self.runner.run(self._batch(part, side == 1))) for part in self._parts()]
            self._answered[side] = {name: torch.cat([run[name] for run in runs]) for name in runs[0]}
        return self._answered[side]

    def _parts(self) -> Iterator[Tensor]:
        return iter(torch.split(torch.arange(self.count), self.together))

    def _batch(self, chosen: Tensor, mirror: bool) -> dict[str, Tensor]:
        part = {name: x[chosen] for name, x in self.inputs.items()}
        return {name: x.flip(3) if mirror and _is_picture(x) else x for name, x in part.items()}


def _is_picture(x: Tensor) -> bool:
    """Whether an input looks like RGB images."""
    return x.dim() == 4 and x.shape[1] == 3

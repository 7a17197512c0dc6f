"""What changed outputs mean: losses, noise, and the change itself in units of the loss, for stacks of variants."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qcompile.exec.torch_loss import VALUES, OutputLoss, total_loss

Float = NDArray[np.float64]

SKETCH = 1024
"""Most numbers per sample that a change of an output is described by."""


@dataclass(frozen=True, slots=True, eq=False)
class Effects:
    """Of V variants on n samples.

    Attributes:
        loss: (V, n), see `qcompile.exec.torch_loss`.
        noise: squared error of the outputs over their mean square in this batch, (V, n).
        change: (V, n, k): products of two variants' rows are those of their changes with the mean Hessian between
            (see `MeanHessian`).
    """

    loss: Float
    noise: Float
    change: Float


class MeanHessian:
    """The Hessian of the loss in the outputs, averaged over samples, as a root to multiply changes with.

    Sample by sample the Hessian diag(p) − p pᵀ of a confident network is nearly 0 but for a few samples, on which every
    estimate then hangs.  Changes of the outputs vary far less from sample to sample, and hardly with the Hessian;
    averaging the two apart takes the noise out.

    Args:
        losses: by output name.
        outputs: float outputs of many samples, in batches.
    """

    def __init__(self, losses: Mapping[str, OutputLoss], outputs: Iterable[Mapping[str, Tensor]]) -> None:
        self.losses = losses
        sums: dict[str, Tensor] = {}
        count = 0
        with torch.no_grad():
            for batch in outputs:
                count += len(next(iter(batch.values())))
                for name, loss in losses.items():
                    if loss.kind != VALUES:
                        p = loss.scores(batch[name].double()).softmax(dim=1)
                        own = torch.diag(p.sum(dim=0)) - p.mT @ p
                        sums[name] = sums[name] + own if name in sums else own
            self.roots = {name: _root(total * losses[name].weight / count) for name, total in sums.items()}

    def change(self, name: str, delta: Tensor) -> Tensor:
        """Changes of one output's scores (V, n, …) multiplied with the root: float64 (V, n, k), k ≤ `SKETCH`.

        Longer ones are folded by random signs (a count sketch, Charikar et al. 2002): inner products stay unbiased.
        """
        flat, loss = delta.double().flatten(2), self.losses[name]
        if name in self.roots:
            flat = flat @ self.roots[name]
        else:
            flat = flat * (loss.weight / (loss.variance * flat.shape[-1])) ** 0.5
        if flat.shape[-1] <= SKETCH:
            return flat
        generator = torch.Generator().manual_seed(flat.shape[-1])
        place = torch.randint(0, SKETCH, (flat.shape[-1],), generator=generator)
        signs = torch.randint(0, 2, (flat.shape[-1],), generator=generator).double() * 2 - 1
        return flat.new_zeros(*flat.shape[:-1], SKETCH).index_add(2, place, flat * signs)


def _root(hessian: Tensor) -> Tensor:
    """R with R Rᵀ = H for a positive semi-definite H."""
    values, vectors = torch.linalg.eigh(hessian)
    return torch.mul(vectors, values.clamp_min(0).sqrt())


def effects_of(hessian: MeanHessian, outputs: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> Effects:
    """Effects of stacked outputs (V, n, …) beside the float ones (n, …), by output name."""
    with torch.no_grad():
        count, samples = next(iter(outputs.values())).shape[:2]
        flat = {name: z.flatten(0, 1) for name, z in outputs.items()}
        repeated = {name: z.repeat(count, *[1] * (z.dim() - 1)) for name, z in reference.items()}
        loss = total_loss(hessian.losses, flat, repeated).reshape(count, samples)
        noise = torch.zeros(count, samples, dtype=torch.float64)
        changes = []
        for name, own in hessian.losses.items():
            z, real = outputs[name].double(), reference[name].double()
            power = real.square().mean().clamp_min(1e-30)
            noise += own.weight * (z - real).square().flatten(2).mean(dim=2) / power
            changes.append(hessian.change(name, own.scores(z) - own.scores(real)))
    return Effects(loss.numpy(), noise.numpy(), torch.cat(changes, dim=2).numpy())

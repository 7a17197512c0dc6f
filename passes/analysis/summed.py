"""Sums over the batches of the calibration samples, kept after every batch so that an interrupted run resumes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from passes.analysis.samples import LabelledBatch, first_samples
from qcompile.errors import PassContractError, UsageError
from qcompile.ir import Array, Graph
from qcompile.pm.base import PassContext
from qcompile.pm.facts import CANDIDATES, RANGES
from qcompile.pm.notes_json import notes_to_json
from qcompile.pm.work import digest

Step = Callable[[int, LabelledBatch], dict[str, Array]]
"""From a batch and its number to what it adds to the sums, by name; arrays of the same shapes each time."""


REFERENCE_SAMPLES = 512
"""Samples whose float outputs set the unit of the loss (variances, mean Hessian): one run each."""


@dataclass(frozen=True, slots=True)
class Samples:
    """Which calibration samples an analysis looks at, and how many at a time.

    Attributes:
        task: name of the pass, for progress and messages.
        count: samples, the first ones.
        batch: samples run at a time; what an interruption loses.
        labelled: whether their labels are used.
    """

    task: str
    count: int
    batch: int
    labelled: bool = False

    def sum(self, graph: Graph, ctx: PassContext, depends: object, prepare: Callable[[], Step]) -> dict[str, Array]:
        """The sums over all batches, and `samples`, how many there were.

        Batches are added in order, so sums do not depend on whether the run was interrupted.

        Args:
            depends: all the sums depend on beside the network, its rounding and the samples (see `digest`).
            prepare: called once if anything is left to do.

        Raises:
            UsageError: a size is not positive.
            DataError: there are no samples.
        """
        if min(self.count, self.batch) < 1:
            raise UsageError(f"{self.task}: samples and batch must be at least 1")
        if ctx.calibration is None:
            raise PassContractError(f"{self.task} needs calibration samples")
        hashes = [b.digest for b in first_samples(graph, ctx.calibration, self.count, self.batch, self.labelled)]
        others = [b.digest for b in first_samples(graph, ctx.calibration, REFERENCE_SAMPLES, 32)]
        key = digest(ctx.seed, depends, hashes, others, rounding_digest(graph))
        held = None if ctx.work is None else ctx.work.get(key)
        sums = dict(held or {"samples": np.array(0), "batches": np.array(0)})
        done = int(sums["batches"])
        if done == len(hashes):
            return sums
        step = prepare()
        batches = first_samples(graph, ctx.calibration, self.count, self.batch, self.labelled)
        for number, batch in enumerate(batches):
            ctx.progress(self.task, number, len(hashes))
            if number < done:
                continue
            more = step(number, batch) | {"samples": np.array(len(batch)), "batches": np.array(1)}
            sums = {name: np.asarray(sums[name] + array) if name in sums else array for name, array in more.items()}
            if ctx.work is not None:
                ctx.work.put(key, sums)
        return sums


def rounding_digest(graph: Graph) -> str:
    """Hash of the network and of all that says how its weights and values would be rounded."""
    ranges = notes_to_json(graph.notes, [RANGES])
    integers = [
        [layer, bits, rounded.q, rounded.scale, rounded.b]
        for layer, candidates in graph.notes.get(CANDIDATES).items()
        for bits, rounded in candidates.by_bits.items()
    ]
    return digest(graph.content_hash, ranges, integers)


def batch_seed(ctx: PassContext, task: str, number: int) -> int:
    """A seed for one batch: the same whichever batches ran before it in this process."""
    return int(ctx.rng(f"{task}:{number}").integers(2**31))


def mean_and_error(sums: Mapping[str, Array], name: str) -> tuple[Array, Array]:
    """Means over samples of `name`, and their standard errors from the sums of squares under `name²`."""
    n = int(sums["samples"])
    mean = sums[name] / n
    spread = np.maximum(sums[f"{name}²"] / n - np.square(mean), 0.0)
    return mean, np.sqrt(spread / (n - 1)) if n > 1 else np.full_like(mean, np.inf)
